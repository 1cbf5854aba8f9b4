"""From the checkpoint to the bytes of a built engine."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from encoder_service.engines.tensorrt.library import ENGINE_FIELD, OTHER_ENGINES, Target, TensorRTLibrary, require_onnx
from encoder_service.engines.tensorrt.log import LastError, library_logger
from encoder_service.engines.tensorrt.profile import EngineProfile
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.checkpoint import half_of_checkpoint
from triptych.models.qwen2_5_vl.config import VisionConfig


@dataclass(frozen=True)
class EngineRequest:
    """Everything that decides what is built."""

    folder: Path
    config: VisionConfig
    precision: torch.dtype
    profile: EngineProfile
    target: Target


@dataclass(frozen=True)
class BuiltEngine:
    """The serialized engine, and how long its making took."""

    data: bytes
    export_s: float
    build_s: float


def build_engine(library: TensorRTLibrary, request: EngineRequest, scratch_folder: Path) -> BuiltEngine:
    """Exports the tower into a folder of its own in `scratch_folder`, which needs room for the weights, and builds.
    Seconds to minutes.

    Raises ConfigurationError without onnx, or with TensorRT's own words when it refuses; ModelError for an unfit
    checkpoint.
    """
    require_onnx()
    from encoder_service.engines.tensorrt.export import export_vision_tower

    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=scratch_folder, prefix=".exported-") as scratch:
        tensors = half_of_checkpoint(request.folder, is_vision=True)
        graph = export_vision_tower(request.config, tensors, request.precision, Path(scratch))
        exported = time.monotonic()
        data = compile_graph(library, graph, request)
    return BuiltEngine(data, exported - started, time.monotonic() - exported)


def compile_graph(library: TensorRTLibrary, graph: Path, request: EngineRequest) -> bytes:
    """The graph's engine, serialized. Raises ConfigurationError with TensorRT's own words."""
    tensorrt = library.module
    last_error = LastError()
    logger = library_logger(library, last_error)
    builder = tensorrt.Builder(logger)
    # The graph says the type of every value; TensorRT 10 had to be told to keep them.
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        complaints = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise _refusal(library, f"its parser refuses the vision tower's graph: {complaints}")
    serialized = builder.build_serialized_network(network, _builder_config(library, builder, request))
    if serialized is None:
        raise _refusal(library, f"it cannot build the vision tower for {request.target}: {last_error.text}")
    return bytes(serialized)


def _builder_config(library: TensorRTLibrary, builder: Any, request: EngineRequest) -> Any:
    config = builder.create_builder_config()
    if library.is_rtx:
        config.num_compute_capabilities = 1
        capability = library.compute_capabilities()[request.target.compute_capability]
        if not config.set_compute_capability(capability, 0):
            raise _refusal(library, f"it does not build for {request.target}")
    profile = builder.create_optimization_profile()
    for name, (least, usual, most) in request.profile.input_shapes(request.config).items():
        profile.set_shape(name, least, usual, most)
    config.add_optimization_profile(profile)
    return config


def _refusal(library: TensorRTLibrary, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{library.name} {library.version}: {reason}. Change stages.encoder.tensorrt, {OTHER_ENGINES}",
        field=ENGINE_FIELD,
    )
