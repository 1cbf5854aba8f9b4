"""The architecture of Qwen2.5-VL at the smallest size that still tells its parts apart, for weights drawn by tests."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLConfig

IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END, EOS = 100, 101, 102, 103, 104


def tiny_config(*, tie: bool, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> Any:
    """A Qwen2_5_VLConfig; `text` and `vision` replace values of its two parts. tie: the head is the embedding."""
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
        }
        | (text or {}),
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
        | (vision or {}),
        tie_word_embeddings=tie,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
