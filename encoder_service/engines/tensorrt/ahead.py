"""Building the engine of a deployment before its encoders start."""

import re

import torch

from encoder_service.engines.tensorrt.library import (
    Target,
    TensorRTLibrary,
    checked_target,
    find_library,
    target_of_device,
)
from encoder_service.engines.tensorrt.preparing import PreparedEngine, engine_request, prepare_engine
from triptych.config import DeploymentConfig
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models_folder import resolve_model_folder
from triptych.precision import resolve_device, resolve_dtype

FLAG = "--compute-capability"


def build_ahead(config: DeploymentConfig, compute_capability: str = "") -> PreparedEngine:
    """The engine that an encoder of this configuration takes from the cache: for this machine's GPU, or for another
    one, without any GPU, where the library can (TensorRT for RTX). Seconds to minutes.

    Raises ConfigurationError and ModelError.
    """
    if not compute_capability and resolve_device(config.model).type != "cuda":
        raise ConfigurationError(
            f"this machine has no CUDA device to build for: name the GPU with {FLAG}, such as 8.9", field=FLAG
        )
    library = find_library()
    target = _target(library, compute_capability)
    folder = resolve_model_folder(config.model.path)
    # As on the GPU that the engine is for, whatever this machine has.
    dtype = resolve_dtype(config.model, torch.device("cuda"))
    section = config.stages.encoder.tensorrt
    request = engine_request(section, folder, ModelConfig.from_folder(folder).vision, dtype, target)
    return prepare_engine(section, library, request)


def _target(library: TensorRTLibrary, compute_capability: str) -> Target:
    if not compute_capability:
        return target_of_device(library, torch.device("cuda"))
    match = re.fullmatch(r"(\d+)\.(\d)", compute_capability)
    if match is None:
        raise ConfigurationError(f"{FLAG} is {compute_capability!r}, expected major.minor, such as 8.9", field=FLAG)
    if not library.is_rtx:
        raise ConfigurationError(
            f"{FLAG}: {library.name} {library.version} builds for the GPU it runs on alone; leave it out, or install "
            "tensorrt_rtx, which builds for others",
            field=FLAG,
        )
    return checked_target(library, (int(match[1]), int(match[2])))
