"""Compiles the kernels of a step side by side: one after the other they take most of a start."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from llm_service.kv_cache import PagedKvCache
from triptych.kernels.activation import silu_and_mul
from triptych.kernels.batch_linear import MAX_TOKENS, BatchTiling, batch_linear
from triptych.kernels.decode_attention import (
    DecodePlan,
    DecodeWorkspace,
    choose_plan,
    paged_decode_attention,
    rotary_decode_attention,
)
from triptych.kernels.norm import fused_add_rms_norm, rms_norm
from triptych.kernels.prefetch import Upcoming
from triptych.kernels.prefill_attention import PrefillTiling, paged_prefill_attention
from triptych.kernels.rotary import rotary_and_store
from triptych.kernels.sample import sample
from triptych.kernels.skinny_linear import skinny_linear
from triptych.models.qwen2_5_vl.fused import BatchPlan, FusedLanguageModel, scales_of

logger = logging.getLogger(__name__)

# Most of a compilation runs outside of Python: in LLVM, in the assembler, in the compiler of the launcher.
_MAX_THREADS = 8

# Batch sizes whose linears are computed in different ways.
_BATCHES = (8, 32, 64, 128)

Task = Callable[[], object]


@contextmanager
def compiling_side_by_side(tasks: Seq[Task]) -> Iterator[None]:
    """Runs each task once, while the caller does what needs no compiler; all are over when the block is. One that fails
    compiles nothing, and fails again where it is needed."""
    started_s = time.monotonic()
    num_threads = min(_MAX_THREADS, os.cpu_count() or 1, len(tasks))
    with ThreadPoolExecutor(num_threads, thread_name_prefix="compile") as executor:
        are_done = executor.map(_is_done, tasks)
        yield
        num_done = sum(are_done)
    logger.info("compiled kernels for %d of %d uses in %.1f s", num_done, len(tasks), time.monotonic() - started_s)


def _is_done(task: Task) -> bool:
    started_s = time.monotonic()
    try:
        with torch.inference_mode():
            task()
    except Exception as error:
        logger.warning("a kernel was not compiled ahead of its use: %s", str(error)[:300])
        return False
    logger.debug("compiled for %s in %.1f s", getattr(task, "func", task), time.monotonic() - started_s)
    return True


class KernelUses:
    """One launch of each kernel as the steps launch it, on small tensors. Nothing is stored in the cache."""

    def __init__(
        self,
        model: FusedLanguageModel,
        cache: PagedKvCache,
        *,
        max_batch: int,
        max_sequence_tokens: int,
        prefill_tiling: PrefillTiling,
    ) -> None:
        self._model = model
        self._cache = cache
        self._max_batch = max_batch
        self._max_sequence_tokens = max_sequence_tokens
        self._prefill_tiling = prefill_tiling
        self._layer = model.first_layer

    def tasks(self) -> list[Task]:
        """The longest to compile first."""
        plans = list(self._plans())
        decodes = [partial(self._decode, batch, plan) for batch, plan in plans]
        packed = [partial(self._packed_decode, batch, plan) for batch, plan in plans]
        prefills = [partial(self._prefill, num_splits) for num_splits in (1, 2)]
        skinny = list(self._skinny()) if self._model.max_skinny_tokens > 0 else []
        batches = list(self._batches())
        return [
            *self._samples(), *prefills, *decodes, *batches, *packed, *skinny, self._rotary, self._norms,
            self._activation,
        ]  # fmt: skip

    def _plans(self) -> Iterator[tuple[int, DecodePlan]]:
        """A batch size for each way to cut decodes."""
        seen = set()
        batch = 1
        while batch <= self._max_batch:
            plan = choose_plan(batch, self._cache.shape.num_kv_heads, self._max_sequence_tokens)
            has_merge_kernel = plan.num_splits > 1 and not plan.is_merged_by_last
            use = (plan.tiling, has_merge_kernel, plan.num_splits if has_merge_kernel else 0)
            if use not in seen:
                seen.add(use)
                yield batch, plan
            batch *= 2

    def _skinny(self) -> Iterator[Task]:
        layer, plan, eps = self._layer, self._model.skinny_plan(1), self._model.config.rms_norm_eps
        attention, mlp = layer.self_attn, layer.mlp
        yield partial(
            skinny_linear, self._zeros(1, attention.qkv_proj.in_features), attention.qkv_proj.weight,
            attention.qkv_proj.bias, weight_scales=scales_of(attention.qkv_proj),
            norm_weight=layer.input_layernorm.weight, eps=eps, tiling=plan.qkv, pdl=plan.pdl,
        )  # fmt: skip
        yield partial(
            skinny_linear, self._zeros(1, mlp.gate_up_proj.in_features), mlp.gate_up_proj.weight,
            weight_scales=scales_of(mlp.gate_up_proj), norm_weight=layer.post_attention_layernorm.weight, eps=eps,
            is_gated=True, tiling=plan.gate_up, pdl=plan.pdl,
        )  # fmt: skip
        for linear, tiling in ((attention.o_proj, plan.o), (mlp.down_proj, plan.down)):
            yield partial(
                skinny_linear, self._zeros(1, linear.in_features), linear.weight, weight_scales=scales_of(linear),
                residual=self._zeros(1, linear.out_features), tiling=tiling, pdl=plan.pdl,
            )  # fmt: skip

    def _batches(self) -> Iterator[Task]:
        """The linears of batches, and the norms that add up their parts."""
        attention, mlp = self._layer.self_attn, self._layer.mlp
        seen = set()
        for batch in sorted({min(batch, self._max_batch) for batch in _BATCHES}):
            plan = self._model.batch_plan(batch) or BatchPlan()
            for linear, tiling in (
                (attention.qkv_proj, plan.qkv), (attention.o_proj, plan.o), (mlp.gate_up_proj, plan.gate_up),
                (mlp.down_proj, plan.down),
            ):  # fmt: skip
                use = (linear, tiling, batch <= MAX_TOKENS // 2)
                if tiling is not None and use not in seen:
                    seen.add(use)
                    yield partial(self._batch_linear, batch, linear, tiling)

    def _batch_linear(self, batch: int, linear: nn.Linear, tiling: BatchTiling) -> None:
        parts = batch_linear(
            self._zeros(batch, linear.in_features), linear.weight, linear.bias,
            is_gated=linear is self._layer.mlp.gate_up_proj, tiling=tiling, pdl=self._model.pdl,
        )  # fmt: skip
        if parts.ndim == 3:
            weight, eps = self._layer.input_layernorm.weight, self._model.config.rms_norm_eps
            fused_add_rms_norm(parts, self._zeros(*parts.shape[1:]), weight, eps, pdl=self._model.pdl)

    def _decode(self, batch: int, plan: DecodePlan) -> None:
        model, keys, values = self._model, *self._cache.layer(0)
        upcoming_bytes = model.skinny_plan(batch).upcoming_bytes if batch <= model.max_skinny_tokens else 0
        rotary_decode_attention(
            self._zeros(batch, self._qkv_size), self._positions(batch), model.rotary_table, model.rotary_sections,
            keys, values, self._slots(batch), self._pages(batch), self._lengths(batch), self._workspace(batch, plan),
            is_merged_by_last=plan.is_merged_by_last, tiling=plan.tiling,
            upcoming=Upcoming(self._layer.mlp.gate_up_proj.weight, upcoming_bytes) if upcoming_bytes else None,
            pdl=model.pdl,
        )  # fmt: skip

    def _packed_decode(self, batch: int, plan: DecodePlan) -> None:
        paged_decode_attention(
            self._queries(batch), *self._cache.layer(0), self._pages(batch), self._lengths(batch),
            self._workspace(batch, plan), is_merged_by_last=plan.is_merged_by_last, tiling=plan.tiling,
        )  # fmt: skip

    def _prefill(self, num_splits: int) -> None:
        shape, num_tokens = self._cache.shape, 2
        workspace = DecodeWorkspace.of(
            num_tokens, self._num_heads, shape.num_kv_heads, shape.head_dim, num_splits, self._cache.device
        )
        ends = torch.zeros(3, dtype=torch.int32, device=self._cache.device)
        paged_prefill_attention(
            self._queries(num_tokens), *self._cache.layer(0), self._pages(2), self._lengths(2), ends,
            workspace=workspace, tiling=self._prefill_tiling,
        )  # fmt: skip

    def _rotary(self) -> None:
        rotary_and_store(
            self._zeros(2, self._qkv_size), self._positions(2), self._model.rotary_table, self._model.rotary_sections,
            *self._cache.layer(0), self._slots(2),
        )  # fmt: skip

    def _norms(self) -> None:
        weight, eps = self._layer.input_layernorm.weight, self._model.config.rms_norm_eps
        states = self._zeros(2, self._model.config.hidden_size)
        rms_norm(states, weight, eps, pdl=self._model.pdl)
        fused_add_rms_norm(states, states.clone(), weight, eps, out=states, pdl=self._model.pdl)

    def _activation(self) -> None:
        silu_and_mul(self._zeros(2, self._layer.mlp.gate_up_proj.out_features), pdl=self._model.pdl)

    def _samples(self) -> Iterator[Task]:
        logits = self._zeros(1, self._model.config.vocab_size)
        for pdl, values in ((self._model.pdl, logits), (False, logits), (False, logits.float())):
            yield partial(self._sample, values, pdl)

    def _sample(self, logits: Tensor, pdl: bool) -> None:
        numbers = torch.zeros(1, dtype=torch.int64, device=self._cache.device)
        sample(logits, torch.zeros(1, device=self._cache.device), numbers, numbers, pdl=pdl)

    @property
    def _num_heads(self) -> int:
        return self._model.config.num_attention_heads

    @property
    def _qkv_size(self) -> int:
        return int(self._layer.self_attn.qkv_proj.out_features)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._model.dtype, device=self._cache.device)

    def _queries(self, num_tokens: int) -> Tensor:
        return self._zeros(num_tokens, self._num_heads, self._cache.shape.head_dim)

    def _positions(self, num_tokens: int) -> Tensor:
        return torch.zeros((3, num_tokens), dtype=torch.int64, device=self._cache.device)

    def _slots(self, num_tokens: int) -> Tensor:
        return torch.full((num_tokens,), -1, dtype=torch.int64, device=self._cache.device)

    def _pages(self, batch: int) -> Tensor:
        return torch.zeros((batch, 1), dtype=torch.int32, device=self._cache.device)

    def _lengths(self, batch: int) -> Tensor:
        """Of padding."""
        return torch.zeros(batch, dtype=torch.int32, device=self._cache.device)

    def _workspace(self, batch: int, plan: DecodePlan) -> DecodeWorkspace:
        shape = self._cache.shape
        return DecodeWorkspace.of(
            batch, self._num_heads, shape.num_kv_heads, shape.head_dim, plan.num_splits, self._cache.device
        )
