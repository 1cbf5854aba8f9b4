"""On which device and in which dtype a stage computes, from the model section of the configuration."""

from __future__ import annotations

import torch

from triptych.config import DType, ModelSection
from triptych.errors import ConfigurationError


def resolve_device(section: ModelSection) -> torch.device:
    """`auto` is the process's GPU where it has one. Raises ConfigurationError for a device that is not there."""
    if section.device not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(
            f"model.device is {section.device!r}, expected auto, cpu or cuda", field="model.device"
        )
    has_gpu = torch.cuda.is_available()
    if section.device == "cuda" and not has_gpu:
        raise ConfigurationError(
            "model.device is 'cuda', but this process sees no CUDA device: set it to auto or cpu, or give the stage "
            "GPUs (stages.*.num_gpus)",
            field="model.device",
        )
    return torch.device("cuda" if has_gpu and section.device != "cpu" else "cpu")


def resolve_dtype(section: ModelSection, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    if section.dtype is DType.AUTO:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if section.dtype is DType.FLOAT32 else torch.bfloat16
