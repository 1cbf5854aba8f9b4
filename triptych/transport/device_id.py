"""Which GPU: ids that are equal in every process that sees the same one, whatever number it has there."""

from __future__ import annotations

import torch


def device_id(device: torch.device) -> str:
    """UUID of a GPU, like "GPU-5d0c...", with a suffix for parts of one; "" for a CPU."""
    if device.type != "cuda":
        return ""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def with_index(device: torch.device) -> torch.device:
    """ "cuda" is the current GPU; tensors and their devices always have a number."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def visible_devices() -> dict[str, torch.device]:
    """The GPUs that this process sees, by id."""
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return {device_id(device): device for device in devices}
