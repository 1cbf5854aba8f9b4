"""Loads the language half of a checkpoint, and puts an engine together over it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_service.attention import build_attention, choose_attention
from llm_service.device_defaults import resolve_section
from llm_service.engine import Engine, StepOutput
from llm_service.kv_cache import PagedKvCache, PageShape
from llm_service.kv_memory import context_cost, free_kv_bytes
from llm_service.model_runner import ModelRunner
from llm_service.page_pool import PagePool
from llm_service.runner import Progress, Runner
from llm_service.sampler import Sampler
from llm_service.scheduler import Scheduler
from triptych.config import LanguageSection, ModelSection, Quantization
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.fingerprint import model_fingerprint
from triptych.models.qwen2_5_vl.language import LanguageModel
from triptych.models.qwen2_5_vl.quantization import quantize_language_model
from triptych.models.qwen2_5_vl.weights import load_language_model
from triptych.models_folder import resolve_model_folder
from triptych.precision import resolve_device, resolve_dtype

logger = logging.getLogger(__name__)

# For one token, kernels that read a weight once and take along what stands around it beat cuBLAS; for four they don't.
MAX_SKINNY_TOKENS = 1


def log_progress(num_done: int, num_all: int) -> None:
    logger.info("captured %d of %d decode graphs", num_done, num_all)


@dataclass(frozen=True)
class LoadedModel:
    """The language model with its configuration, and the checkpoint's fingerprint. No `visual.*` tensor is read."""

    config: ModelConfig
    language: LanguageModel
    fingerprint: str
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def load(cls, section: ModelSection) -> LoadedModel:
        """Takes seconds: not for an event loop. Raises ModelError or ConfigurationError."""
        folder = resolve_model_folder(section.path)
        device = resolve_device(section)
        return cls.from_folder(folder, resolve_dtype(section, device), device, section.quantization)

    @classmethod
    def from_folder(
        cls, folder: Path, dtype: torch.dtype, device: torch.device, quantization: Quantization = Quantization.NONE
    ) -> LoadedModel:
        config = ModelConfig.from_folder(folder)
        if quantization is Quantization.FP8:
            _check_fp8(device)
        language = load_language_model(folder, config, dtype, device)
        if quantization is Quantization.FP8:
            quantize_language_model(language)
        return cls(config, language, model_fingerprint(folder), dtype, device)

    @property
    def num_parameters(self) -> int:
        """Counted on the live module."""
        return sum(parameter.numel() for parameter in self.language.parameters())

    @property
    def num_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.language.parameters())


def build_engine(
    model: LoadedModel,
    section: LanguageSection,
    publish: Callable[[list[StepOutput]], None],
    progress: Progress = log_progress,
) -> Engine:
    """An engine with its own KV cache, still to be started; `progress` is called while that prepares its runner.

    Raises ConfigurationError for values that can't work.
    """
    section = resolve_section(section, model.device)
    shape = PageShape.of_model(model.config.text, section.page_size, model.dtype)
    num_pages = section.num_pages or shape.num_pages_in(section.kv_cache_bytes or free_kv_bytes(model, section))
    cache = PagedKvCache(shape, num_pages, model.device)
    pool = PagePool(num_pages, section.page_size, section.enable_prefix_cache)
    max_context_tokens = section.max_context_tokens or model.config.text.max_position_embeddings
    # A sequence that has the cache to itself must be able to go on to its end.
    max_sequence_tokens = min(max_context_tokens, num_pages * section.page_size)
    runner = build_runner(model, section, cache, max_sequence_tokens, progress)
    scheduler = Scheduler(section, pool, cache, context_cost(model.config.text))
    return Engine(scheduler, runner, max_sequence_tokens, publish)


def build_runner(
    model: LoadedModel, section: LanguageSection, cache: PagedKvCache, max_sequence_tokens: int, progress: Progress
) -> Runner:
    """Fused kernels with the Triton attention, plain torch with any other."""
    name = choose_attention(section.attention, model.device)
    logger.info("attention %s on %s, %d KV pages of %d tokens", name, model.device, cache.num_pages, cache.page_size)
    if name != "triton":
        sampler = Sampler(model.config.eos_token_ids)
        return ModelRunner(model.language, cache, build_attention(name, cache), sampler)
    # Triton is an optional package, and slow to import.
    from llm_service.fused_runner import FusedModelRunner
    from llm_service.fused_sampler import FusedSampler
    from triptych.models.qwen2_5_vl.fused import FusedLanguageModel

    is_cuda = model.device.type == "cuda"
    has_pdl = is_cuda and torch.cuda.get_device_capability(model.device) >= (9, 0)
    max_position = max(model.config.text.max_position_embeddings, max_sequence_tokens)
    return FusedModelRunner(
        FusedLanguageModel(model.language, max_position, max_skinny_tokens=MAX_SKINNY_TOKENS, pdl=has_pdl),
        cache,
        FusedSampler(model.config.eos_token_ids),
        max_batch=section.max_running_requests,
        max_sequence_tokens=max_sequence_tokens,
        max_step_tokens=section.max_step_tokens,
        num_steps_ahead=1 if is_cuda else 0,
        progress=progress,
    )


def _check_fp8(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigurationError(
            f"model.quantization is fp8, but the device is {device}: it needs a GPU of capability 8.9 or higher",
            field="model.quantization",
        )
