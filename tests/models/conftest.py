"""Small random checkpoints, written by transformers, for the tests of the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END, EOS = 100, 101, 102, 103, 104


def tiny_config(tie: bool = True, **vision: Any) -> Qwen2_5_VLConfig:
    """Every part of the architecture at the smallest size that still tells the parts apart."""
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 128,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 2, 1]},
            "tie_word_embeddings": tie,
            "eos_token_id": EOS,
            "bos_token_id": EOS,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 44,
            "num_heads": 2,
            "out_hidden_size": 48,
            "window_size": 56,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        }
        | vision,
        tie_word_embeddings=tie,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )


def tiny_reference(tie: bool = True) -> Qwen2_5_VLForConditionalGeneration:
    """A model whose biases and norms differ from their neutral values, so that leaving one out shows."""
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(tiny_config(tie)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            is_matrix = parameter.ndim > 1
            parameter.copy_(torch.randn_like(parameter) * (0.15 if is_matrix else 0.3) + (0.0 if is_matrix else 0.8))
    return model


@pytest.fixture(scope="session")
def reference() -> Qwen2_5_VLForConditionalGeneration:
    return tiny_reference()


@pytest.fixture(scope="session")
def checkpoint(reference: Qwen2_5_VLForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "model"
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sharded_checkpoint(reference: Qwen2_5_VLForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "model"
    reference.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def untied_checkpoint(tmp_path: Path) -> tuple[Path, Qwen2_5_VLForConditionalGeneration]:
    model = tiny_reference(tie=False)
    model.save_pretrained(tmp_path / "untied")
    return tmp_path / "untied", model
