"""Builds one half of the model, the vision tower or the language model, with its weights."""

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.checkpoint import half_of_checkpoint, listed
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.fingerprint import model_fingerprint
from triptych.models.qwen2_5_vl.fp8_checkpoint import SCALE_SUFFIX, StoredTensor, scaled_linears, with_channel_scales
from triptych.models.qwen2_5_vl.language import LanguageModel
from triptych.models.qwen2_5_vl.quantization import FP8_DTYPE, expect_fp8
from triptych.models.qwen2_5_vl.sharded import ShardedLanguageModel
from triptych.models.qwen2_5_vl.sharding import Collectives, Shard, shard_tensors
from triptych.models.qwen2_5_vl.vision import VisionTower

__all__ = [
    "load_language_model",
    "load_vision_tower",
    "model_fingerprint",
    "random_language_model",
    "random_vision_tower",
]

Half = TypeVar("Half", VisionTower, LanguageModel)

# A parameter that joins several tensors of the checkpoint: the part of its name, and the parts it stands for.
FUSED_NAMES = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
TIED_NAME = "lm_head.weight"


def load_vision_tower(folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> VisionTower:
    """The vision tower with the checkpoint's `visual.*` tensors; no other tensor is read.

    Raises ModelError listing tensors that are missing, unexpected or of another shape.
    """
    tower = _on_meta(lambda: VisionTower(config.vision))
    return _fill(tower, folder, half_of_checkpoint(folder, is_vision=True), dtype, device)


def load_language_model(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    collectives: Collectives | None = None,
) -> LanguageModel:
    """The language model with all tensors of the checkpoint but `visual.*`; no other tensor is read. Linears that the
    checkpoint has in FP8 stay so. With `collectives` the rank's part of it, and of its tensors no other part is read;
    that is complete only after `sum_over_ranks`.

    Raises ModelError listing tensors that are missing, unexpected or of another shape.
    """
    tensors = with_channel_scales(dict(half_of_checkpoint(folder, is_vision=False)), folder)
    if config.text.tie_word_embeddings:
        tensors.pop(TIED_NAME, None)  # some tied checkpoints carry the embedding a second time
    model = _on_meta(lambda: _language_model(config, collectives))
    if collectives is not None:
        tensors = shard_tensors(tensors, Shard(collectives.rank, collectives.size))
    expect_fp8(model, scaled_linears(tensors, FUSED_NAMES))
    return _fill(model, folder, tensors, dtype, device)


def random_vision_tower(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int) -> VisionTower:
    """A tower of true shapes with random weights, for measuring without a checkpoint."""
    return _randomize(_on_meta(lambda: VisionTower(config.vision)), dtype, device, seed)


def random_language_model(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    collectives: Collectives | None = None,
) -> LanguageModel:
    """A language model of true shapes, or a rank's part of one, with random weights, for measuring without a
    checkpoint."""
    return _randomize(_on_meta(lambda: _language_model(config, collectives)), dtype, device, seed)


def _language_model(config: ModelConfig, collectives: Collectives | None) -> LanguageModel:
    return LanguageModel(config.text) if collectives is None else ShardedLanguageModel(config.text, collectives)


class _WithoutValues(TorchFunctionMode):
    """Draws no first values for parameters: on the device meta there is nothing to fill, and torch would import its
    compiler to find that out, which takes as long as the rest of an actor's start."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _on_meta(build: Callable[[], Half]) -> Half:
    """Shapes alone: nothing is allocated or initialised twice."""
    with torch.device("meta"), _WithoutValues():
        return build()


def _fill(
    half: Half, folder: Path, tensors: Mapping[str, StoredTensor], dtype: torch.dtype, device: torch.device
) -> Half:
    expected = half.state_dict()
    _check(folder, expected, tensors)
    parameters = {
        name: _assemble(
            parameter, [tensors[part] for part in _checkpoint_names(name)], _dtype_of(name, parameter, dtype), device
        )
        for name, parameter in expected.items()
    }
    half.load_state_dict(parameters, assign=True)
    return half.requires_grad_(False).eval()


def _dtype_of(name: str, parameter: Tensor, dtype: torch.dtype) -> torch.dtype:
    """FP8 weights and their scales keep their own."""
    return parameter.dtype if parameter.dtype == FP8_DTYPE or name.endswith(SCALE_SUFFIX) else dtype


def _checkpoint_names(parameter_name: str) -> list[str]:
    """The tensors that make up a parameter, in the order in which they are joined."""
    for fused, parts in FUSED_NAMES.items():
        if f".{fused}." in parameter_name:
            return [parameter_name.replace(fused, part) for part in parts]
    return [parameter_name]


def _check(folder: Path, expected: dict[str, Tensor], tensors: Mapping[str, StoredTensor]) -> None:
    wanted = {part for name in expected for part in _checkpoint_names(name)}
    # Checkpoints of old tools carry the rotary frequencies, which are computed here.
    unexpected = sorted(name for name in tensors.keys() - wanted if not name.endswith(".inv_freq"))
    missing = sorted(wanted - tensors.keys())
    misshapen = [
        f"{name} {[list(tensors[part].shape) for part in parts]} (expected {list(parameter.shape)} in all)"
        for name, parameter in expected.items()
        if tensors.keys() >= set(parts := _checkpoint_names(name)) and not _fits(parameter, [tensors[p] for p in parts])
    ]
    problems = [
        f"{what}: {listed(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise ModelError(f"{folder}: the tensors do not fit config.json; {'; '.join(problems)}")


def _fits(parameter: Tensor, parts: list[StoredTensor]) -> bool:
    """Rows add up, and each row is as long. A row may have its own dimensions: the patch embedding is a convolution."""
    num_rows = sum(part.shape[0] for part in parts)
    row_sizes = {prod(part.shape[1:]) for part in parts}
    return num_rows == parameter.shape[0] and row_sizes == {prod(parameter.shape[1:])}


def _assemble(parameter: Tensor, parts: list[StoredTensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One parameter, made at its final place and filled part by part, so that nothing is held twice."""
    target = torch.empty(parameter.shape, dtype=dtype, device=device)
    row = 0
    for part in parts:
        num_rows = part.shape[0]
        target[row : row + num_rows].copy_(part.read().reshape(num_rows, *parameter.shape[1:]))
        row += num_rows
    return target


def _randomize(half: Half, dtype: torch.dtype, device: torch.device, seed: int) -> Half:
    """Norms 1, biases 0, matrices normal with variance 1 / inputs: activations keep their scale at any width."""
    half = half.to(dtype).to_empty(device=device).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in half.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return half.eval()
