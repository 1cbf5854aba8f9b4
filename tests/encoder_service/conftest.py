"""A random checkpoint, and stages and actors over it."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_samples import MakeStage, Samples
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from encoder_service.loading import load_stage
from encoder_service.stage import EncoderStage
from triptych.config import DeploymentConfig

HIDDEN_SIZE = 48


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    text = {
        "vocab_size": 128,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 2, 1]},
        "eos_token_id": 104,
        "bos_token_id": 104,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_heads": 2,
        "out_hidden_size": HIDDEN_SIZE,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    tokens = {"image_token_id": 100, "video_token_id": 101, "vision_start_token_id": 102, "vision_end_token_id": 103}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))
    folder = tmp_path_factory.mktemp("encoder") / "model"
    model.save_pretrained(folder)
    processing = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 64, "patch_size": 14, "temporal_patch_size": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def make_config(checkpoint: Path) -> Callable[..., DeploymentConfig]:
    """`make_config(cache_bytes=0, limits={...})`: names of the encoder section, or whole sections."""

    def make(limits: dict[str, Any] | None = None, transport: dict[str, Any] | None = None, **encoder: Any) -> Any:
        model = {"path": str(checkpoint), "device": "cpu"}
        small = {"shared_memory_bytes": 4 * 1024 * 1024}
        return DeploymentConfig.model_validate(
            {
                "model": model,
                "stages": {"encoder": encoder},
                "limits": limits or {},
                "transport": small | (transport or {}),
            }
        )

    return make


@pytest.fixture
async def make_stage(make_config: Callable[..., DeploymentConfig]) -> AsyncIterator[MakeStage]:
    """Stages that are started, and closed at the end; nothing may be left pending or held then."""
    stages: list[EncoderStage] = []

    async def make(**values: Any) -> EncoderStage:
        stage = await load_stage(make_config(**values), "encoder-test")
        stages.append(stage)
        stage.start()
        return stage

    yield make
    for stage in stages:
        await stage.close()
        assert stage.counters().pending_patches == 0
        assert stage.leases.counters().held_leases == 0


@pytest.fixture
async def stage(make_stage: MakeStage) -> EncoderStage:
    return await make_stage()


@pytest.fixture
def samples(stage: EncoderStage) -> Samples:
    """Items for `stage`."""
    return Samples(stage)
