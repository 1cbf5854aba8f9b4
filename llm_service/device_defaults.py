"""What the settings of a language stage mean where the configuration leaves them to the device."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from triptych.config import MIB, LanguageSection

# A GPU takes a whole long prompt in one step when nobody waits for the next token. Beside running streams a step of
# 1,024 prompt tokens takes about 11 ms with 3B weights and 23 ms with 7B on an H200.
DEVICE_DEFAULTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "cpu": {
            "max_running_requests": 64,
            "max_step_tokens": 2_048,
            "prefill_chunk_tokens": 1_024,
            "mixed_prefill_tokens": 2_048,
            "kv_cache_bytes": 256 * MIB,
        },
        "cuda": {
            "max_running_requests": 256,
            "max_step_tokens": 32_768,
            "prefill_chunk_tokens": 32_768,
            "mixed_prefill_tokens": 1_024,
        },
    }
)


def resolve_section(section: LanguageSection, device: torch.device) -> LanguageSection:
    """The section with the device's value wherever it says 0. A kv_cache_bytes of 0 stays on a GPU: see `kv_memory`."""
    defaults = DEVICE_DEFAULTS[device.type]
    return section.model_copy(update={key: value for key, value in defaults.items() if getattr(section, key) == 0})
