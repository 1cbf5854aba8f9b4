"""Attention backends over the paged KV cache, chosen by name (`stages.*.attention`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from llm_service.attention.base import PagedAttention
from llm_service.attention.torch import TorchPagedAttention
from llm_service.kv_cache import PagedKvCache
from triptych.errors import ConfigurationError

ATTENTION_BACKENDS: Mapping[str, Callable[[PagedKvCache], PagedAttention]] = MappingProxyType(
    {"torch": TorchPagedAttention}
)


def build_attention(name: str, cache: PagedKvCache) -> PagedAttention:
    """The backend of that name over `cache`. Raises ConfigurationError for an unknown one."""
    if name not in ATTENTION_BACKENDS:
        raise ConfigurationError(
            f"attention is {name!r}, expected one of {', '.join(sorted(ATTENTION_BACKENDS))}", field="attention"
        )
    return ATTENTION_BACKENDS[name](cache)
