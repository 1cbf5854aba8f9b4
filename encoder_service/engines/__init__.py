"""Vision engines by name: what runs the tower."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from triptych.config import EncoderSection
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid


@dataclass(frozen=True)
class WeightCount:
    """Weights that an engine holds, counted on its live modules."""

    num_visual_parameters: int
    num_language_parameters: int
    num_bytes: int


class VisionEngine(Protocol):
    """Runs the vision tower. All calls come from one thread."""

    dtype: torch.dtype
    device: torch.device

    def encode(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Patches [sum of num_patches, patch_dim] on the engine's device, those of each grid in turn, in one packed
        forward to one embedding [num_tokens, hidden] for each grid.

        Each embedding owns its memory. Only enqueues work where the device has a queue: nothing is waited for, and the
        embeddings may be read on the stream that was current.
        """
        ...

    def activation_bytes(self, num_patches: int) -> int:
        """Memory on the device that `encode` takes for a batch of so many patches, beside the weights: patches,
        intermediate results and embeddings."""
        ...

    def weights(self) -> WeightCount: ...


HoldWeights = Callable[[Sequence[Tensor]], None]
"""May give the tensors other memory; called when they are where the engine reads them, before anything is captured."""


def keep_in_place(weights: Sequence[Tensor]) -> None:
    """The HoldWeights of an engine whose weights stay on the device."""


@dataclass(frozen=True)
class EngineSource:
    """What an engine is loaded from: a checkpoint's folder and its configuration, where and in which dtype it computes,
    the operator's settings."""

    folder: Path
    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    section: EncoderSection
    hold_weights: HoldWeights = keep_in_place


LoadEngine = Callable[[EngineSource], VisionEngine]


def engine_registry() -> Mapping[str, LoadEngine]:
    """Engines by the name that stages.encoder.engine gives."""
    from encoder_service.engines.fused import FusedVisionEngine, load_automatic_engine
    from encoder_service.engines.tensorrt.engine import TensorRTVisionEngine
    from encoder_service.engines.torch import TorchVisionEngine

    return {
        "auto": load_automatic_engine,
        "fused": FusedVisionEngine.load,
        "tensorrt": TensorRTVisionEngine.load,
        "torch": TorchVisionEngine.load,
    }


def load_engine(source: EngineSource) -> VisionEngine:
    """Loads the tower's weights, `visual.*` alone. Takes seconds: not for an event loop.

    Raises ConfigurationError for an unknown name or one that can't run here, ModelError for an unfit checkpoint.
    """
    name = source.section.engine
    registry = engine_registry()
    if name not in registry:
        raise ConfigurationError(
            f"stages.encoder.engine is {name!r}, expected one of {', '.join(sorted(registry))}",
            field="stages.encoder.engine",
        )
    return registry[name](source)
