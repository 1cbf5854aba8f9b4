"""The engine on fused kernels, and the choice of an engine by device."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from math import isqrt

import torch
from torch import Tensor

from encoder_service.engines import EngineSource, HoldWeights, VisionEngine, WeightCount, keep_in_place
from encoder_service.engines.torch import TorchVisionEngine, separate
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision import VisionTower
from triptych.models.qwen2_5_vl.vision.fused import FusedVisionTower
from triptych.models.qwen2_5_vl.vision.graphs import VisionGraphs
from triptych.models.qwen2_5_vl.vision.tower import check_patches
from triptych.models.qwen2_5_vl.weights import load_vision_tower

# A picture of 896 x 896 px: larger ones take the same kernels.
MIN_WARM_UP_PATCHES = 4_096

logger = logging.getLogger(__name__)


def load_automatic_engine(source: EngineSource) -> VisionEngine:
    """Fused kernels where they run and pay, on a GPU without Triton TensorRT where it can be used, else plain torch."""
    from encoder_service.engines.tensorrt.engine import load_where_usable

    if not _why_unfit(source):
        is_paying = source.dtype == torch.bfloat16
        return FusedVisionEngine.load(source) if is_paying else TorchVisionEngine.load(source)
    return load_where_usable(source) or TorchVisionEngine.load(source)


class FusedVisionEngine:
    """One packed forward a batch on fused kernels, small batches as CUDA graphs. Needs a GPU and Triton."""

    def __init__(self, tower: VisionTower, max_graph_patches: int, hold_weights: HoldWeights = keep_in_place) -> None:
        """Takes `tower` apart. Captures graphs for batches of at most `max_graph_patches` patches: seconds."""
        # Triton is an optional package, and slow to import.
        from triptych.kernels.vision_operations import TritonVisionOperations

        self._num_parameters = sum(parameter.numel() for parameter in tower.parameters())
        device = next(tower.parameters()).device
        has_pdl = torch.cuda.get_device_capability(device) >= (9, 0)
        with torch.inference_mode():
            self.tower = FusedVisionTower(tower, TritonVisionOperations(pdl=has_pdl))
            hold_weights(self.tower.weights.tensors)
        self.dtype = self.tower.dtype
        self.device = self.tower.device
        self._graphs = VisionGraphs(self.tower, max_graph_patches)
        self._graphs.capture(_log_progress)
        self._warm_up(max_graph_patches)

    @classmethod
    def load(cls, source: EngineSource) -> "FusedVisionEngine":
        """Raises ConfigurationError where it can't run."""
        reason = _why_unfit(source)
        if reason:
            raise ConfigurationError(
                f"stages.encoder.engine is 'fused', but {reason}: set it to auto or torch",
                field="stages.encoder.engine",
            )
        tower = load_vision_tower(source.folder, source.config, source.dtype, source.device)
        return cls(tower, source.section.max_graph_patches, source.hold_weights)

    @torch.inference_mode()
    def encode(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        config = self.tower.config
        check_patches(patches, grids, config)
        embeddings = self._graphs.forward(patches, grids)
        if embeddings is None:
            embeddings = self.tower.forward(patches, grids)
        return separate(embeddings, grids, config.spatial_merge_size)

    def activation_bytes(self, num_patches: int) -> int:
        return self.tower.activation_bytes(num_patches)

    @torch.inference_mode()
    def _warm_up(self, max_graph_patches: int) -> None:
        """One square picture that has no graph, so that no request waits for kernels that load on first use."""
        side = 2 * (isqrt(max(max_graph_patches, MIN_WARM_UP_PATCHES)) // 2 + 1)
        patches = torch.zeros(side * side, self.tower.config.patch_dim, dtype=self.dtype, device=self.device)
        self.tower.forward(patches, [Grid(1, side, side)])
        torch.cuda.synchronize(self.device)

    def weights(self) -> WeightCount:
        """Parameters as in the checkpoint; bytes with the zeros that fill them up."""
        return WeightCount(
            num_visual_parameters=self._num_parameters,
            num_language_parameters=0,
            num_bytes=sum(tensor.nbytes for tensor in self.tower.weights.tensors),
        )


def _why_unfit(source: EngineSource) -> str:
    """Why fused kernels can't run; empty where they can."""
    if source.device.type != "cuda":
        return f"the device is {source.device}"
    if find_spec("triton") is None:
        return "the package triton is not installed"
    return ""


def _log_progress(num_done: int, num_all: int) -> None:
    logger.info("captured %d of %d graphs of the vision tower", num_done, num_all)
