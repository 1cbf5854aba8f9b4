"""The architecture of a checkpoint, read from its folder.

Two layouts are read: the published one, with the text fields at the top level of `config.json`, and the one that
transformers 5 writes, with `text_config` and `rope_parameters`. transformers itself is not imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.json_file import read_json_object, required

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
# Fixed in the architecture: the configuration has no field for it.
VISION_RMS_NORM_EPS = 1e-6


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Sizes named `*_size` are in pixels for patches and windows, in channels for layers."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    out_hidden_size: int
    tokens_per_second: int
    rms_norm_eps: float = VISION_RMS_NORM_EPS

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values in one flattened patch: channels x frames x rows x columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size


@dataclass(frozen=True)
class TextConfig:
    """The language model. `mrope_section` counts frequencies (half of `head_dim`) per axis: time, height, width."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    max_position_embeddings: int
    tie_word_embeddings: bool


@dataclass(frozen=True)
class ModelConfig:
    """Both halves, and the token ids that join them. `torch_dtype` is the dtype the checkpoint was saved in."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: tuple[int, ...]
    torch_dtype: str

    @classmethod
    def from_folder(cls, path: Path) -> "ModelConfig":
        """Reads `config.json`, and `generation_config.json` where there is one.

        Raises ModelError for another architecture, a missing key (named) or values that do not fit together.
        """
        source = path / "config.json"
        root = read_json_object(source)
        architectures = root.get("architectures") or []
        if ARCHITECTURE not in architectures:
            raise ModelError(f"{source}: architectures is {architectures}, expected it to name {ARCHITECTURE}")
        text_fields = root.get("text_config") or root
        dtype = root.get("dtype") or root.get("torch_dtype") or text_fields.get("dtype") or "float32"
        config = cls(
            vision=_vision_config(required(root, "vision_config", source), source),
            text=_text_config(root, text_fields, source),
            image_token_id=int(required(root, "image_token_id", source)),
            video_token_id=int(required(root, "video_token_id", source)),
            vision_start_token_id=int(required(root, "vision_start_token_id", source)),
            vision_end_token_id=int(required(root, "vision_end_token_id", source)),
            eos_token_ids=_eos_token_ids(path, root, text_fields),
            torch_dtype=str(dtype).removeprefix("torch."),
        )
        if config.vision.out_hidden_size != config.text.hidden_size:
            raise ModelError(
                f"{source}: vision_config.out_hidden_size is {config.vision.out_hidden_size}, "
                f"expected the language model's hidden_size {config.text.hidden_size}"
            )
        return config


def _vision_config(fields: Mapping[str, Any], source: Path) -> VisionConfig:
    def integer(key: str) -> int:
        return int(required(fields, key, source, "vision_config."))

    _require_silu(fields, source, "vision_config.")
    config = VisionConfig(
        depth=integer("depth"),
        hidden_size=integer("hidden_size"),
        intermediate_size=integer("intermediate_size"),
        num_heads=integer("num_heads"),
        # transformers 5 writes in_channels; the published files say in_chans.
        in_channels=integer("in_channels") if "in_channels" in fields else integer("in_chans"),
        patch_size=integer("patch_size"),
        temporal_patch_size=integer("temporal_patch_size"),
        spatial_merge_size=integer("spatial_merge_size"),
        window_size=integer("window_size"),
        fullatt_block_indexes=tuple(required(fields, "fullatt_block_indexes", source, "vision_config.")),
        out_hidden_size=integer("out_hidden_size"),
        tokens_per_second=integer("tokens_per_second"),
    )
    if config.head_dim * config.num_heads != config.hidden_size or config.head_dim % 4:
        raise ModelError(
            f"{source}: vision_config.hidden_size is {config.hidden_size}, "
            f"expected num_heads ({config.num_heads}) times a multiple of 4"
        )
    return config


def _text_config(root: Mapping[str, Any], fields: Mapping[str, Any], source: Path) -> TextConfig:
    prefix = "" if fields is root else "text_config."

    def integer(key: str) -> int:
        return int(required(fields, key, source, prefix))

    _require_silu(fields, source, prefix)
    if fields.get("use_sliding_window"):
        raise ModelError(f"{source}: {prefix}use_sliding_window is true, expected false: sliding windows are not built")
    hidden_size, num_heads = integer("hidden_size"), integer("num_attention_heads")
    rope_theta, mrope_section = _rope(fields, source, prefix)
    config = TextConfig(
        vocab_size=integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=integer("intermediate_size"),
        num_hidden_layers=integer("num_hidden_layers"),
        num_attention_heads=num_heads,
        num_key_value_heads=int(fields.get("num_key_value_heads") or num_heads),
        head_dim=hidden_size // num_heads,
        rms_norm_eps=float(required(fields, "rms_norm_eps", source, prefix)),
        rope_theta=rope_theta,
        mrope_section=mrope_section,
        max_position_embeddings=integer("max_position_embeddings"),
        tie_word_embeddings=bool(root.get("tie_word_embeddings") or fields.get("tie_word_embeddings")),
    )
    if config.head_dim * num_heads != hidden_size or num_heads % config.num_key_value_heads:
        raise ModelError(
            f"{source}: {prefix}hidden_size {hidden_size}, num_attention_heads {num_heads} and num_key_value_heads "
            f"{config.num_key_value_heads} do not divide evenly"
        )
    if 2 * sum(config.mrope_section) != config.head_dim:
        raise ModelError(
            f"{source}: mrope_section {list(config.mrope_section)} sums to {sum(config.mrope_section)}, "
            f"expected half of the head size {config.head_dim}"
        )
    return config


def _rope(fields: Mapping[str, Any], source: Path, prefix: str) -> tuple[float, tuple[int, int, int]]:
    """The rotary base and the frequencies per axis, from `rope_parameters` or from `rope_scaling` and `rope_theta`."""
    key = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    rope = required(fields, key, source, prefix)
    rope_type = rope.get("rope_type") or rope.get("type")
    if rope_type not in ("mrope", "default"):
        raise ModelError(f"{source}: {prefix}{key} has the type {rope_type!r}, expected 'mrope' or 'default'")
    theta = rope["rope_theta"] if "rope_theta" in rope else required(fields, "rope_theta", source, prefix)
    section = tuple(int(count) for count in required(rope, "mrope_section", source, f"{prefix}{key}."))
    if len(section) != 3:
        raise ModelError(f"{source}: {prefix}{key}.mrope_section is {list(section)}, expected three numbers")
    return float(theta), section


def _require_silu(fields: Mapping[str, Any], source: Path, prefix: str) -> None:
    if fields.get("hidden_act", "silu") != "silu":
        raise ModelError(f"{source}: {prefix}hidden_act is {fields['hidden_act']!r}, expected 'silu'")


def _eos_token_ids(path: Path, root: Mapping[str, Any], text_fields: Mapping[str, Any]) -> tuple[int, ...]:
    generation_file = path / "generation_config.json"
    generation = read_json_object(generation_file) if generation_file.exists() else {}
    for fields in (generation, root, text_fields):
        value = fields.get("eos_token_id")
        if value is not None:
            return tuple(int(token) for token in (value if isinstance(value, list) else [value]))
    raise ModelError(f"{path}: neither generation_config.json nor config.json has the key 'eos_token_id'")
