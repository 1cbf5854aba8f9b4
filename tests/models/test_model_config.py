"""Configurations of real and of freshly saved checkpoints."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.config import ModelConfig

# config.json and generation_config.json as published with Qwen2.5-VL-3B-Instruct.
PUBLISHED_3B: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}


def write(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_published_layout(tmp_path: Path) -> None:
    config = ModelConfig.from_folder(write(tmp_path, PUBLISHED_3B, {"eos_token_id": [151645, 151643]}))
    assert config.text.mrope_section == (16, 24, 24)
    assert config.text.rope_theta == 1e6
    assert (config.text.head_dim, config.text.num_key_value_heads, config.text.num_hidden_layers) == (128, 2, 36)
    assert config.text.tie_word_embeddings
    assert (config.vision.head_dim, config.vision.patch_dim, config.vision.in_channels) == (80, 1176, 3)
    assert config.vision.fullatt_block_indexes == (7, 15, 23, 31)
    assert config.eos_token_ids == (151645, 151643)
    assert config.torch_dtype == "bfloat16"
    assert (config.image_token_id, config.video_token_id) == (151655, 151656)


def test_eos_of_config_without_generation_config(tmp_path: Path) -> None:
    assert ModelConfig.from_folder(write(tmp_path, PUBLISHED_3B)).eos_token_ids == (151645,)


def test_transformers_5_layout_is_the_same_model(checkpoint: Path) -> None:
    config = ModelConfig.from_folder(checkpoint)
    assert "text_config" in json.loads((checkpoint / "config.json").read_text())
    assert config.text.mrope_section == (1, 2, 1)
    assert config.text.tie_word_embeddings
    assert config.vision.window_size == 56
    assert config.eos_token_ids == (104,)
    assert config.torch_dtype == "float32"


@pytest.mark.parametrize("key", ["vision_config", "hidden_size", "image_token_id", "rope_scaling", "rms_norm_eps"])
def test_missing_key_is_named(tmp_path: Path, key: str) -> None:
    config = {name: value for name, value in PUBLISHED_3B.items() if name != key}
    with pytest.raises(ModelError, match=f"'{key}' is missing"):
        ModelConfig.from_folder(write(tmp_path, config))


def test_missing_vision_key_is_named(tmp_path: Path) -> None:
    vision = {name: value for name, value in PUBLISHED_3B["vision_config"].items() if name != "window_size"}
    with pytest.raises(ModelError, match=r"'vision_config\.window_size' is missing"):
        ModelConfig.from_folder(write(tmp_path, PUBLISHED_3B | {"vision_config": vision}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Qwen2VLForConditionalGeneration"]}, "Qwen2VLForConditionalGeneration"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24]}}, "yarn"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 23]}}, "sums to 63"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_key_value_heads": 3}, "divide evenly"),
        ({"hidden_size": 4096}, "out_hidden_size|mrope_section"),
    ],
)
def test_what_is_not_built_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_folder(write(tmp_path, PUBLISHED_3B | change))


def test_no_folder_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        ModelConfig.from_folder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        ModelConfig.from_folder(tmp_path)


def test_configuration_and_model_import_no_transformers() -> None:
    script = (
        "import sys\n"
        "import triptych.models.qwen2_5_vl.config\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "import triptych.models.qwen2_5_vl.weights, triptych.models.qwen2_5_vl.processing\n"
        "assert 'transformers' not in sys.modules, 'transformers'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
