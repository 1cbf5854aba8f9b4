"""Loads the language half of a checkpoint, and puts an engine together over it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from llm_service.attention import build_attention, choose_attention
from llm_service.device_defaults import resolve_section
from llm_service.engine import Engine, StepOutput
from llm_service.kv_cache import PagedKvCache, PageShape, PageStore
from llm_service.kv_memory import context_cost, free_kv_bytes
from llm_service.model_runner import ModelRunner
from llm_service.page_pool import PagePool
from llm_service.parallel.leader import LeaderLink
from llm_service.parallel.pages import GatheredPages
from llm_service.parallel.runner import ParallelRunner
from llm_service.runner import Progress, Runner
from llm_service.sampler import Sampler
from llm_service.scheduler import Scheduler
from llm_service.step_trace import StepTrace
from triptych.config import LanguageSection, ModelSection, Quantization
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.fingerprint import model_fingerprint
from triptych.models.qwen2_5_vl.language import LanguageModel
from triptych.models.qwen2_5_vl.layers import store_by_columns
from triptych.models.qwen2_5_vl.quantization import quantize_language_model
from triptych.models.qwen2_5_vl.sharded import ShardedLanguageModel
from triptych.models.qwen2_5_vl.sharding import Collectives
from triptych.models.qwen2_5_vl.weights import load_language_model
from triptych.models_folder import resolve_model_folder
from triptych.precision import resolve_device, resolve_dtype

logger = logging.getLogger(__name__)

# For one token, kernels that read a weight once and take along what stands around it beat cuBLAS; for four they don't.
MAX_SKINNY_TOKENS = 1


def log_progress(num_done: int, num_all: int) -> None:
    logger.info("captured %d of %d graphs", num_done, num_all)


@dataclass(frozen=True)
class LoadedModel:
    """The language model with its configuration, and the checkpoint's fingerprint. No `visual.*` tensor is read.

    Where several ranks share the work, `language` is the part of one of them, and `language.config` says how large.
    """

    config: ModelConfig
    language: LanguageModel
    fingerprint: str
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def load(cls, section: ModelSection, collectives: Collectives | None = None) -> LoadedModel:
        """With `collectives` the part of their rank. Takes seconds: not for an event loop.

        Raises ModelError or ConfigurationError.
        """
        folder = resolve_model_folder(section.path)
        device = resolve_device(section)
        return cls.from_folder(folder, resolve_dtype(section, device), device, section.quantization, collectives)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization = Quantization.NONE,
        collectives: Collectives | None = None,
    ) -> LoadedModel:
        config = ModelConfig.from_folder(folder)
        if quantization is Quantization.FP8:
            _check_fp8(device)
        language = load_language_model(folder, config, dtype, device, collectives)
        if quantization is Quantization.FP8:
            quantize_language_model(language)
        if isinstance(language, ShardedLanguageModel):
            language.sum_over_ranks()
        if device.type == "cpu" and dtype is torch.float32:
            store_by_columns(language)
        return cls(config, language, model_fingerprint(folder), dtype, device)

    @property
    def num_parameters(self) -> int:
        """Counted on the live module."""
        return sum(parameter.numel() for parameter in self.language.parameters())

    @property
    def num_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.language.parameters())


@dataclass(frozen=True)
class Computation:
    """What computes steps: in a group each rank has one of its own, all of the same shape."""

    cache: PagedKvCache
    runner: Runner
    max_sequence_tokens: int


def build_engine(
    model: LoadedModel,
    section: LanguageSection,
    publish: Callable[[list[StepOutput]], None],
    progress: Progress = log_progress,
    link: LeaderLink | None = None,
) -> Engine:
    """An engine with its own KV cache, still to be started; `progress` is called while that prepares its runner.

    link: to the other ranks, where the model is one of several parts. Raises ConfigurationError for values that can't
    work.
    """
    section = resolve_section(section, model.device)
    computation = build_computation(model, section, progress)
    runner, pages = computation.runner, cast(PageStore, computation.cache)
    if link is not None:
        runner, pages = ParallelRunner(runner, link, model.dtype), GatheredPages(computation.cache, link)
    pool = PagePool(computation.cache.num_pages, section.page_size, section.enable_prefix_cache)
    scheduler = Scheduler(section, pool, pages, context_cost(model.language.config))
    return Engine(scheduler, runner, computation.max_sequence_tokens, publish)


def build_computation(model: LoadedModel, section: LanguageSection, progress: Progress = log_progress) -> Computation:
    """The cache and the runner of this process, for a section that was resolved. Ranks agree on the number of pages."""
    shape = PageShape.of_model(model.language.config, section.page_size, model.dtype)
    num_pages = section.num_pages or shape.num_pages_in(section.kv_cache_bytes or free_kv_bytes(model, section))
    if isinstance(model.language, ShardedLanguageModel):
        num_pages = model.language.collectives.min_of(num_pages)
    cache = PagedKvCache(shape, num_pages, model.device, section.export_bytes)
    max_context_tokens = section.max_context_tokens or model.config.text.max_position_embeddings
    # A sequence that has the cache to itself must be able to go on to its end.
    max_sequence_tokens = min(max_context_tokens, num_pages * section.page_size)
    runner = build_runner(model, section, cache, max_sequence_tokens, progress)
    return Computation(cache, runner, max_sequence_tokens)


def build_runner(
    model: LoadedModel, section: LanguageSection, cache: PagedKvCache, max_sequence_tokens: int, progress: Progress
) -> Runner:
    """Fused kernels with the Triton attention, plain torch with any other."""
    name = choose_attention(section.attention, model.device)
    logger.info("attention %s on %s, %d KV pages of %d tokens", name, model.device, cache.num_pages, cache.page_size)
    if name != "triton":
        sampler = Sampler(model.config.eos_token_ids)
        # On a GPU calls are made ahead of the device; between ranks they can't be recorded.
        is_recorded = model.device.type == "cpu" and not isinstance(model.language, ShardedLanguageModel)
        trace = StepTrace(model.language, cache) if is_recorded else None
        return ModelRunner(model.language, cache, build_attention(name, cache), sampler, trace=trace)
    # Triton is an optional package, and slow to import.
    from llm_service.fused_runner import FusedModelRunner
    from llm_service.fused_sampler import FusedSampler
    from llm_service.prompt_buckets import prompt_buckets
    from triptych.models.qwen2_5_vl.fused import FusedLanguageModel

    is_cuda = model.device.type == "cuda"
    has_pdl = is_cuda and torch.cuda.get_device_capability(model.device) >= (9, 0)
    max_position = max(model.config.text.max_position_embeddings, max_sequence_tokens)
    max_batch = section.max_running_requests
    buckets = prompt_buckets(section.max_step_tokens, section.mixed_prefill_tokens, max_batch)
    runner_class: type[FusedModelRunner] = FusedModelRunner
    language: FusedLanguageModel
    if isinstance(model.language, ShardedLanguageModel):
        from llm_service.parallel.fused_runner import ShardedFusedRunner
        from triptych.models.qwen2_5_vl.sharded_fused import ShardedFusedLanguageModel

        runner_class, language = ShardedFusedRunner, ShardedFusedLanguageModel(model.language, max_position)
        # As many graphs of prompts are captured as the time allows, and the ranks' times differ.
        buckets = []
    else:
        language = FusedLanguageModel(model.language, max_position, max_skinny_tokens=MAX_SKINNY_TOKENS, pdl=has_pdl)
    return runner_class(
        language,
        cache,
        FusedSampler(model.config.eos_token_ids),
        max_batch=max_batch,
        max_sequence_tokens=max_sequence_tokens,
        max_step_tokens=section.max_step_tokens,
        num_steps_ahead=1 if is_cuda else 0,
        progress=progress,
        prompt_buckets=buckets if is_cuda else (),
    )


def _check_fp8(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigurationError(
            f"model.quantization is fp8, but the device is {device}: it needs a GPU of capability 8.9 or higher",
            field="model.quantization",
        )
