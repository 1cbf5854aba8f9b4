"""The fused runner over the small model: on a GPU as it is, elsewhere in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("triton")
# Read when a kernel is decorated, so it has to be set before any kernel file is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from engine_helpers import CPU, Model, SteppedEngine

from llm_service.attention.triton import TritonPagedAttention
from llm_service.device_defaults import resolve_section
from llm_service.fused_runner import FusedModelRunner
from llm_service.fused_sampler import FusedSampler
from llm_service.kv_cache import PagedKvCache
from llm_service.model_runner import ModelRunner
from llm_service.prompt_buckets import PromptBucket
from llm_service.sampler import Sampler
from triptych.config import LanguageSection
from triptych.models.qwen2_5_vl.fused import FusedLanguageModel


def fused_engine(
    model: Model,
    num_steps_ahead: int = 1,
    max_skinny_tokens: int = 0,
    max_sequence_tokens: int = 100,
    prompt_buckets: Sequence[PromptBucket] = (),
    **section: object,
) -> SteppedEngine:
    values = {"page_size": 8, "num_pages": 100, "max_running_requests": 3} | section
    engine = SteppedEngine(model, LanguageSection.model_validate(values), max_sequence_tokens)
    fused = FusedLanguageModel(model.language, max_position=512, max_skinny_tokens=max_skinny_tokens)
    engine.runner = FusedModelRunner(
        fused,
        engine.cache,
        FusedSampler(model.config.eos_token_ids),
        max_batch=resolve_section(engine.scheduler.section, CPU).max_running_requests,
        max_sequence_tokens=max_sequence_tokens,
        max_step_tokens=resolve_section(engine.scheduler.section, CPU).max_step_tokens,
        num_steps_ahead=num_steps_ahead,
        progress=lambda num_done, num_all: None,
        prompt_buckets=prompt_buckets,
    )
    engine.runner.prepare()
    return engine


def kernel_attention_runner(model: Model, cache: PagedKvCache) -> ModelRunner:
    """The plain model over the attention kernels."""
    return ModelRunner(model.language, cache, TritonPagedAttention(cache), Sampler(model.config.eos_token_ids))
