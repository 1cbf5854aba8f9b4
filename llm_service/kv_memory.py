"""How much of a GPU's memory the KV cache may take, and what context costs: both from the model's shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llm_service.prompt_buckets import MAX_PROMPT_TOKENS
from triptych.config import MIB, LanguageSection
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import TextConfig

if TYPE_CHECKING:
    from llm_service.loading import LoadedModel

# Compiled kernels, captured graphs, the work space of libraries, and what the allocator can't use.
_OVERHEAD_BYTES = 2_048 * MIB
# Attention over pages reaches about half of the rate of the linears.
_ATTENTION_SLOWNESS = 2.0


def free_kv_bytes(model: LoadedModel, section: LanguageSection) -> int:
    """What `gpu_memory_fraction` leaves beside all that is in use now and the work space of the largest step.

    Raises ConfigurationError when that is nothing.
    """
    torch.cuda.empty_cache()
    num_free, num_total = torch.cuda.mem_get_info(model.device)
    config, itemsize = model.language.config, model.dtype.itemsize
    reserved = step_bytes(config, section, itemsize) + graph_bytes(config, itemsize) + _OVERHEAD_BYTES
    num_bytes = int(section.gpu_memory_fraction * num_total) - (num_total - num_free) - reserved
    if num_bytes <= 0:
        raise ConfigurationError(
            f"gpu_memory_fraction is {section.gpu_memory_fraction} of {num_total} bytes, of which "
            f"{num_total - num_free} are in use and a step of {section.max_step_tokens} tokens needs {reserved}: "
            "nothing is left for the KV cache; raise the fraction, or lower max_step_tokens",
            field="gpu_memory_fraction",
        )
    return num_bytes


def graph_bytes(config: TextConfig, itemsize: int) -> int:
    """Activations of captured steps, which have memory of their own."""
    return MAX_PROMPT_TOKENS * _values_per_token(config) * itemsize


def step_bytes(config: TextConfig, section: LanguageSection, itemsize: int) -> int:
    """Activations that live at once in the largest step, and logits of all running sequences, sorted once."""
    sampling = section.max_running_requests * config.vocab_size * (2 * itemsize + 24)
    return section.max_step_tokens * _values_per_token(config) * itemsize + sampling


def _values_per_token(config: TextConfig) -> int:
    qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    return 3 * config.intermediate_size + 6 * config.hidden_size + 2 * qkv


def context_cost(config: TextConfig) -> float:
    """What attending to one token of context costs a token, as a part of what its linear layers cost."""
    hidden, head_dim = config.hidden_size, config.head_dim
    attention_size = config.num_attention_heads * head_dim
    qkv = attention_size + 2 * config.num_key_value_heads * head_dim
    linears = 2 * hidden * (qkv + attention_size + 3 * config.intermediate_size)
    return _ATTENTION_SLOWNESS * 4 * attention_size / linears
