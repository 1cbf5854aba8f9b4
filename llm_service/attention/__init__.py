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


ATTENTION_BACKENDS: Mapping[str, Callable[[PagedKvCache], PagedAttention]] = MappingProxyType(
    {"torch": TorchPagedAttention, "triton": _build_triton}
)

# Libraries that people ask for by name, and their packages.
_NOT_BUILT_IN: Mapping[str, str] = MappingProxyType({"flashinfer": "flashinfer-python", "flash_attn": "flash-attn"})


def choose_attention(name: str, device: torch.device) -> str:
    """The backend that `name` means on `device`. Raises ConfigurationError for an unknown or an unavailable one."""
    has_triton = importlib.util.find_spec("triton") is not None
    if name == AUTO:
        return "triton" if device.type == "cuda" and has_triton else "torch"
    if name in _NOT_BUILT_IN:
        raise ConfigurationError(
            f"attention is {name!r}, but the package {_NOT_BUILT_IN[name]} is not supported here: its kernels run on a "
            "GPU alone, and no backend over them was verified on one; set attention to auto (triton takes cuDNN for "
            "whole prompts), or register a PagedAttention of that name in ATTENTION_BACKENDS",
            field="attention",
        )
    if name not in ATTENTION_BACKENDS:
        raise ConfigurationError(
            f"attention is {name!r}, expected {AUTO} or one of {', '.join(sorted(ATTENTION_BACKENDS))}",
            field="attention",
        )
    if name == "triton" and not has_triton:
        raise ConfigurationError(
            "attention is 'triton', but the package triton is not installed: install it, or set attention to auto",
            field="attention",
        )
    return name


def build_attention(name: str, cache: PagedKvCache) -> PagedAttention:
    """The backend of that name over `cache`. Raises ConfigurationError as `choose_attention` does."""
    return ATTENTION_BACKENDS[choose_attention(name, cache.device)](cache)
