"""The architecture's numbers, and the configuration files that describe them."""

from dataclasses import dataclass

from tools.tiny_model.tokenizer import VOCABULARY_SIZE, token_id

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
PATCH = 14
MERGE = 2
CELL = PATCH * MERGE
MIN_PIXELS = 56 * 56
MAX_PIXELS = 224 * 224
VIDEO_MAX_PIXELS = 112 * 112
MAX_FRAMES = 8


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of the vision tower and the language model (3.8 million parameters)."""

    vision_hidden: int = 128
    vision_intermediate: int = 256
    vision_heads: int = 4
    vision_depth: int = 4
    full_attention_blocks: tuple[int, ...] = (1, 3)
    window: int = 56
    hidden: int = 256
    intermediate: int = 512
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    vocabulary: int = VOCABULARY_SIZE
    # A small base: with 10^6 the width's share of the rotary frequencies turns by less than 0.01 rad over a whole
    # picture, and the language model cannot tell left from right.
    rope_theta: float = 100.0
    mrope_section: tuple[int, int, int] = (8, 12, 12)
    tokens_per_second: int = 2
    max_positions: int = 4096
    eps: float = 1e-6

    @property
    def vision_head_dim(self) -> int:
        return self.vision_hidden // self.vision_heads

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Values of one patch: channels x 2 frames x 14 x 14."""
        return 3 * 2 * PATCH * PATCH


def model_config(shape: ModelShape) -> dict[str, object]:
    """`config.json` as transformers reads it."""
    end, pad = token_id("<|im_end|>"), token_id("<|endoftext|>")
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "bos_token_id": pad,
        "eos_token_id": end,
        "pad_token_id": pad,
        "tie_word_embeddings": True,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_intermediate,
            "num_heads": shape.vision_heads,
            "out_hidden_size": shape.hidden,
            "hidden_act": "silu",
            "in_channels": 3,
            "in_chans": 3,
            "patch_size": PATCH,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": 2,
            "spatial_merge_size": MERGE,
            "window_size": shape.window,
            "fullatt_block_indexes": list(shape.full_attention_blocks),
            "tokens_per_second": shape.tokens_per_second,
        },
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "hidden_act": "silu",
            "max_position_embeddings": shape.max_positions,
            "rms_norm_eps": shape.eps,
            "rope_theta": shape.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(shape.mrope_section)},
            "use_sliding_window": False,
            "attention_dropout": 0.0,
            "use_cache": True,
            "bos_token_id": pad,
            "eos_token_id": end,
            "pad_token_id": pad,
            "tie_word_embeddings": True,
        },
    }


def generation_config() -> dict[str, object]:
    """`generation_config.json`: greedy, ends with the assistant's turn."""
    end, pad = token_id("<|im_end|>"), token_id("<|endoftext|>")
    return {"bos_token_id": pad, "pad_token_id": pad, "eos_token_id": [end, pad], "do_sample": False}


def image_processor_config() -> dict[str, object]:
    """`preprocessor_config.json`: scales any picture into the range of sizes that was trained."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        **_pixel_settings(MAX_PIXELS),
    }


def video_processor_config() -> dict[str, object]:
    """`video_preprocessor_config.json`: two frames a second, 4 to 8 in all."""
    return {
        "video_processor_type": "Qwen2VLVideoProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        **_pixel_settings(VIDEO_MAX_PIXELS),
        "fps": 2,
        "min_frames": 4,
        "max_frames": MAX_FRAMES,
    }


def _pixel_settings(max_pixels: int) -> dict[str, object]:
    return {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "min_pixels": MIN_PIXELS,
        "max_pixels": max_pixels,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
    }
