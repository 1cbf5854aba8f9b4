"""Attention backends over the paged KV cache, chosen by name (`stages.*.attention`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from llm_service.attention.base import PagedAttention
from llm_service.attention.torch import TorchPagedAttention
from llm_service.kv_cache import PagedKvCache
from triptych.errors import ConfigurationError

AUTO = "auto"


def _build_triton(cache: PagedKvCache) -> PagedAttention:
    # Triton is an optional package, and slow to import.
    from llm_service.attention.triton import TritonPagedAttention

    return TritonPagedAttention(cache)


def _build_flashinfer(cache: PagedKvCache) -> PagedAttention:
    from llm_service.attention.flashinfer import FlashInferPagedAttention

    return FlashInferPagedAttention(cache)


ATTENTION_BACKENDS: Mapping[str, Callable[[PagedKvCache], PagedAttention]] = MappingProxyType(
    {"torch": TorchPagedAttention, "triton": _build_triton, "flashinfer": _build_flashinfer}
)

# The packages of backends whose module is named like them.
_PACKAGES: Mapping[str, str] = MappingProxyType({"triton": "triton", "flashinfer": "flashinfer-python"})


def choose_attention(name: str, device: torch.device) -> str:
    """The backend that `name` means on `device`. Raises ConfigurationError for an unknown or an unavailable one."""
    if name == AUTO:
        return "triton" if device.type == "cuda" and _is_installed("triton") else "torch"
    if name not in ATTENTION_BACKENDS:
        raise ConfigurationError(
            f"attention is {name!r}, expected {AUTO} or one of {', '.join(sorted(ATTENTION_BACKENDS))}",
            field="attention",
        )
    if name in _PACKAGES and not _is_installed(name):
        raise ConfigurationError(
            f"attention is {name!r}, but the package {_PACKAGES[name]} is not installed: install it, or set attention "
            "to auto",
            field="attention",
        )
    if name == "flashinfer" and device.type != "cuda":
        raise ConfigurationError(
            f"attention is {name!r}, which needs a GPU, but the device is {device}: set attention to auto",
            field="attention",
        )
    return name


def build_attention(name: str, cache: PagedKvCache) -> PagedAttention:
    """The backend of that name over `cache`. Raises ConfigurationError as `choose_attention` does."""
    return ATTENTION_BACKENDS[choose_attention(name, cache.device)](cache)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
