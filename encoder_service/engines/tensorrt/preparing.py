"""From the configuration to an engine's bytes: out of the cache, or built and put there."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from encoder_service.engines.tensorrt.builder import EngineRequest, build_engine
from encoder_service.engines.tensorrt.cache import EngineCache, EngineKey
from encoder_service.engines.tensorrt.library import Target, TensorRTLibrary
from encoder_service.engines.tensorrt.profile import engine_profile
from triptych.config import TensorRTSection, VisionPrecision
from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.processing import ImageProcessing, VideoProcessing

_log = logging.getLogger(__name__)

_PRECISIONS = {
    VisionPrecision.FLOAT32: torch.float32,
    VisionPrecision.FLOAT16: torch.float16,
    VisionPrecision.BFLOAT16: torch.bfloat16,
}


@dataclass(frozen=True)
class PreparedEngine:
    """A serialized engine, where it is kept, and how long it was built; 0 when it was there."""

    data: bytes
    path: Path
    build_s: float


def engine_request(
    section: TensorRTSection, folder: Path, config: VisionConfig, dtype: torch.dtype, target: Target
) -> EngineRequest:
    """What the configuration asks for. `dtype` is the model's, for precision auto. Raises ConfigurationError."""
    profile = engine_profile(section, config, _largest_frame(folder))
    return EngineRequest(folder, config, _PRECISIONS.get(section.precision, dtype), profile, target)


def prepare_engine(section: TensorRTSection, library: TensorRTLibrary, request: EngineRequest) -> PreparedEngine:
    """The engine of `request`. Raises what `build_engine` raises, and ConfigurationError for an unsafe folder."""
    cache = EngineCache(section.cache_folder)
    key = EngineKey(library, request)
    path = cache.path(key)
    with cache.building(key):
        data = cache.load(key)
        if data is not None:
            _log.info("vision engine for %s taken from %s", request.target, path)
            return PreparedEngine(data, path, 0.0)
        _log.info("building the vision engine for %s with %s %s", request.target, library.name, library.version)
        started = time.monotonic()
        built = build_engine(library, request, cache.folder)
        cache.store(key, built.data)
    return PreparedEngine(built.data, path, time.monotonic() - started)


def _largest_frame(folder: Path) -> int:
    """Most patches that the model's own processing makes of one picture, or of one step of a video."""
    formats = (ImageProcessing.from_folder(folder), VideoProcessing.from_folder(folder))
    return max(kind.max_pixels // kind.patch_size**2 for kind in formats)
