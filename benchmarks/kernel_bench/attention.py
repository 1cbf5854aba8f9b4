"""Decode attention over pages in several tilings, and prefill attention over pages and without them."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.kernel_bench.report import SectionReport
from benchmarks.kernel_bench.shapes import DTYPE, MODELS, SECTIONS, THETA, ModelShape, PagedInputs, paged_inputs, randn
from benchmarks.kernel_bench.timing import num_sets, time_eager, time_in_graph
from triptych.kernels.decode_attention import (
    DecodeTiling,
    DecodeWorkspace,
    choose_num_splits,
    paged_decode_attention,
    rotary_decode_attention,
)
from triptych.kernels.dense_prefill import DENSE_VARIANTS
from triptych.kernels.prefill_attention import PrefillTiling, paged_prefill_attention
from triptych.kernels.rotary import rotary_table

READ_BYTES_PER_S = 4.26e12
FLOPS = 650e12
MAX_CONTEXT = 32_768
DECODE_CASES = ((1, 512), (1, 2048), (8, 512), (8, 2048), (64, 512), (64, 2048), (256, 512), (256, 2048), (1, 32_768))
DECODE_TILINGS = (DecodeTiling(64, 4, 3), DecodeTiling(64, 4, 5), DecodeTiling(128, 8, 3), DecodeTiling(32, 4, 5))
PREFILL_TILINGS = (
    PrefillTiling(128, 64, 8, 3),
    PrefillTiling(128, 64, 8, 5),
    PrefillTiling(128, 128, 8, 3),
    PrefillTiling(64, 64, 4, 3),
)
# (new tokens, cached tokens)
PREFILL_CASES = ((1400, 0), (21_700, 0), (1024, 8192), (2048, 0))


def run(report: SectionReport, pdl: bool) -> None:
    for model in MODELS:
        for batch, context in DECODE_CASES:
            with report.attempt(f"{model.name} decode {batch} x {context}"):
                _decode(report, model, batch, context, pdl)
            torch.cuda.empty_cache()
        for num_new, num_cached in PREFILL_CASES:
            with report.attempt(f"{model.name} prefill {num_new} + {num_cached}"):
                _prefill(report, model, num_new, num_cached)
            torch.cuda.empty_cache()


def _decode(report: SectionReport, model: ModelShape, batch: int, context: int, pdl: bool) -> None:
    num_bytes = batch * context * model.kv_bytes
    label, floor = f"decode {batch}x{context}", num_bytes / READ_BYTES_PER_S * 1e6
    # One pool of pages; each call of a graph reads sequences of its own.
    sets = num_sets(num_bytes, least=2, most=64)
    pool = paged_inputs(model, [context] * (batch * sets), max_context=MAX_CONTEXT)
    inputs = [_part(pool, index * batch, batch) for index in range(sets)]
    query = randn(batch, model.num_heads, model.head_dim)
    out = torch.empty_like(query)
    qkv, table = randn(batch, model.qkv), rotary_table(MAX_CONTEXT, model.head_dim, THETA, torch.device("cuda"))
    default_splits = choose_num_splits(batch, model.num_kv_heads, MAX_CONTEXT)
    for num_splits in sorted({default_splits, max(1, default_splits // 2), min(64, 2 * default_splits)}):
        workspace = DecodeWorkspace.of(
            batch, model.num_heads, model.num_kv_heads, model.head_dim, num_splits, torch.device("cuda")
        )
        tilings = DECODE_TILINGS if num_splits == default_splits else DECODE_TILINGS[1:2]
        for tiling in tilings:
            name = f"s{num_splits} t{tiling.block_tokens}w{tiling.num_warps}p{tiling.num_stages}"
            options = {"out": out, "tiling": tiling, "pdl": pdl}
            calls = {
                "last": [partial(paged_decode_attention, query, *part.pages, workspace, **options) for part in inputs]
            }
            if tiling is DECODE_TILINGS[1]:
                options["is_merged_by_last"] = False
                calls["merge"] = [
                    partial(paged_decode_attention, query, *part.pages, workspace, **options) for part in inputs
                ]
                options["is_merged_by_last"] = True
                calls["rotary"] = [
                    partial(
                        rotary_decode_attention, qkv, part.positions, table, SECTIONS, part.key_cache,
                        part.value_cache, part.slots, part.block_table, part.context_lengths, workspace, **options,
                    )
                    for part in inputs
                ]  # fmt: skip
            for kind, of_kind in calls.items():
                samples = time_in_graph(of_kind, rounds=8)
                report.add(model.name, label, f"{name} {kind}", samples, floor_us=floor)


def _part(pool: PagedInputs, first: int, count: int) -> PagedInputs:
    rows = slice(first, first + count)
    return PagedInputs(
        pool.key_cache,
        pool.value_cache,
        pool.block_table[rows].contiguous(),
        pool.context_lengths[rows].contiguous(),
        pool.slots[rows].contiguous(),
        pool.positions[:, rows].contiguous(),
    )


def _prefill(report: SectionReport, model: ModelShape, num_new: int, num_cached: int) -> None:
    pairs = num_new * num_cached + num_new * (num_new + 1) / 2
    label, floor = f"prefill {num_new}+{num_cached}", 4 * pairs * model.num_heads * model.head_dim / FLOPS * 1e6
    pages = paged_inputs(model, [num_new + num_cached])
    query = randn(num_new, model.num_heads, model.head_dim)
    out, cu_seqlens = torch.empty_like(query), torch.tensor([0, num_new], dtype=torch.int32, device="cuda")

    for tiling in PREFILL_TILINGS:
        name = f"paged r{tiling.block_rows}t{tiling.block_tokens}p{tiling.num_stages}"
        with report.attempt(f"{model.name} {label} {name}"):
            call = partial(paged_prefill_attention, query, *pages.pages, cu_seqlens, out=out, tiling=tiling)
            report.add(model.name, label, name, time_eager(call), floor_us=floor)
    if num_cached:
        return
    key, value = (torch.randn(num_new, model.num_kv_heads, model.head_dim, device="cuda").to(DTYPE) for _ in range(2))
    for name, attend in DENSE_VARIANTS.items():
        with report.attempt(f"{model.name} {label} {name}"):
            samples = time_eager(partial(attend, query, key, value, [num_new], cu_seqlens))
            report.add(model.name, label, f"torch {name}", samples, floor_us=floor)
