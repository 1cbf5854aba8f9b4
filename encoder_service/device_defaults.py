"""What the settings of the encode stage mean where the configuration leaves them to the device."""

import os
from collections.abc import Mapping
from types import MappingProxyType

import torch

from triptych.config import EncoderSection

# A GPU's matrix units are busy from a few thousand patches on: larger batches only make everybody wait for the last.
MAX_BATCH_PATCHES: Mapping[str, int] = MappingProxyType({"cpu": 65_536, "cuda": 22_528})
# Beside a GPU they hash and read headers, below a millisecond a picture, most of it without the interpreter's lock.
MEDIA_WORKERS: Mapping[str, int] = MappingProxyType({"cpu": 2, "cuda": 8})
MAX_ACTIVATION_BYTES = 8 << 30
# Of the device's memory, where that is less.
ACTIVATION_SHARE: Mapping[str, float] = MappingProxyType({"cpu": 0.5, "cuda": 0.25})


def resolve_section(section: EncoderSection, device: torch.device) -> EncoderSection:
    """The section with the device's value wherever it says 0."""
    share = int(_memory_bytes(device) * ACTIVATION_SHARE[device.type])
    return section.model_copy(
        update={
            "max_batch_patches": section.max_batch_patches or MAX_BATCH_PATCHES[device.type],
            "media_workers": section.media_workers or MEDIA_WORKERS[device.type],
            "activation_bytes": section.activation_bytes or min(MAX_ACTIVATION_BYTES, share),
        }
    )


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
