"""On which device and in which dtype the tower runs, from the model section of the configuration."""

import torch

from triptych.config import DType, ModelSection
from triptych.errors import ConfigurationError


def resolve_device(model: ModelSection) -> torch.device:
    """`auto` is the process's GPU where it has one. Raises ConfigurationError for a device that is not there."""
    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(model.device)
    except RuntimeError:
        raise ConfigurationError(
            f"model.device is {model.device!r}, expected auto, cpu or cuda", field="model.device"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"model.device is {model.device!r}, but this process sees no CUDA device: set it to auto or cpu, "
            "or give the stage GPUs (stages.encoder.num_gpus)",
            field="model.device",
        )
    return device


def resolve_dtype(model: ModelSection, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    if model.dtype is DType.FLOAT32:
        return torch.float32
    if model.dtype is DType.BFLOAT16:
        return torch.bfloat16
    return torch.bfloat16 if device.type == "cuda" else torch.float32
