"""The vision engine tensorrt: frames shared out over calls of a built engine, and their embeddings put together."""

import logging
from collections.abc import Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from encoder_service.engines import EngineSource, WeightCount
from encoder_service.engines.tensorrt.calls import MAX_PADDED_SHARE, Frame, plan_calls
from encoder_service.engines.tensorrt.library import find_library, require_gpu, target_of_device
from encoder_service.engines.tensorrt.preparing import engine_request, prepare_engine
from encoder_service.engines.tensorrt.profile import EngineProfile
from encoder_service.engines.tensorrt.runner import TensorRTRunner
from encoder_service.engines.tensorrt.shapes import tower_weight_shapes
from encoder_service.engines.tensorrt.tables import graph_inputs
from encoder_service.engines.torch import separate
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision.layout import LayoutCache
from triptych.models.qwen2_5_vl.vision.tower import MAX_CACHED_PATCHES, activation_bytes, check_patches

logger = logging.getLogger(__name__)


class GraphRunner(Protocol):
    """Whatever runs the exported graph."""

    def run(self, inputs: dict[str, Tensor]) -> Tensor:
        """The embeddings [cells, out_hidden_size] of `tables.graph_inputs`."""
        ...


class TensorRTVisionEngine:
    """As many calls a batch as the profile needs, usually one. `dtype` is that of the embeddings."""

    def __init__(
        self,
        runner: GraphRunner,
        config: VisionConfig,
        profile: EngineProfile,
        precision: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
        num_bytes: int = 0,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._runner = runner
        self._config = config
        self._profile = profile
        self._precision = precision
        self._num_bytes = num_bytes
        self._layouts = LayoutCache(config, MAX_CACHED_PATCHES)

    @classmethod
    def load(cls, source: EngineSource) -> "TensorRTVisionEngine":
        """Takes the engine from the cache, or builds it first: seconds to minutes.

        Raises ConfigurationError, always naming what is missing and the setting, when TensorRT cannot be used here.
        """
        require_gpu(source.device)
        library = find_library()
        target = target_of_device(library, source.device)
        section, config = source.section.tensorrt, source.config.vision
        request = engine_request(section, source.folder, config, source.dtype, target)
        data = prepare_engine(section, library, request).data
        runner = TensorRTRunner(library, data, source.device)
        return cls(runner, config, request.profile, request.precision, source.dtype, source.device, len(data))

    @torch.inference_mode()
    def encode(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        check_patches(patches, grids, self._config)
        merge = self._config.spatial_merge_size
        rows = patches.new_empty((patches.shape[0] // merge**2, self._config.out_hidden_size), dtype=self.dtype)
        for frames in plan_calls(grids, self._profile, self._config):
            self._encode_frames(patches, frames, rows)
        return separate(rows, grids, merge)

    def activation_bytes(self, num_patches: int) -> int:
        """What the plain tower takes, for the padding too: TensorRT tells its own figure only for exact shapes."""
        return MAX_PADDED_SHARE * activation_bytes(self._config, num_patches, self._precision)

    def weights(self) -> WeightCount:
        """Parameters of the checkpoint that went into the engine, and the engine's own size."""
        shapes = tower_weight_shapes(self._config).values()
        return WeightCount(
            num_visual_parameters=sum(prod(shape) for shape in shapes),
            num_language_parameters=0,
            num_bytes=self._num_bytes,
        )

    def _encode_frames(self, patches: Tensor, frames: Sequence[Frame], rows: Tensor) -> None:
        """One call; its embeddings go to their places in `rows` [cells, out_hidden_size]."""
        cell = self._config.spatial_merge_size**2
        parts = [patches[frame.start : frame.start + frame.num_patches] for frame in frames]
        grids = [frame.grid for frame in frames]
        missing = self._profile.patches.min - sum(frame.num_patches for frame in frames)
        if missing > 0:
            blank = _blank_grid(missing, self._config)
            grids.append(blank)
            parts.append(patches.new_zeros((blank.num_patches, patches.shape[1])))
        packed = torch.cat(parts) if len(parts) > 1 else parts[0]
        embeddings = self._runner.run(graph_inputs(packed, grids, self._layouts, self._config, self._precision))
        first = 0
        for frame in frames:
            start, length = frame.start // cell, frame.num_patches // cell
            rows[start : start + length] = embeddings[first : first + length]
            first += length


def load_where_usable(source: EngineSource) -> TensorRTVisionEngine | None:
    """The engine, or None and one line in the log that says why TensorRT cannot be used here."""
    try:
        return TensorRTVisionEngine.load(source)
    except ConfigurationError as error:
        logger.info("stages.encoder.engine auto does not take tensorrt: %s", error)
        return None


def _blank_grid(num_patches: int, config: VisionConfig) -> Grid:
    """A picture one cell high of at least so many patches."""
    merge = config.spatial_merge_size
    return Grid(1, merge, -(-num_patches // merge**2) * merge)
