"""Norm, rotation, activation, quantisation and sampling, each alone in a graph."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.kernel_bench.report import SectionReport
from benchmarks.kernel_bench.shapes import DTYPE, EPS, MODELS, SECTIONS, THETA, ModelShape, paged_inputs, randn
from benchmarks.kernel_bench.timing import num_sets, time_in_graph
from triptych.kernels.activation import silu_and_mul
from triptych.kernels.fp8 import quantize_per_token
from triptych.kernels.norm import fused_add_rms_norm
from triptych.kernels.rotary import rotary_and_store, rotary_table
from triptych.kernels.sample import sample

READ_BYTES_PER_S = 4.26e12
ROWS = (1, 64, 1400)
SAMPLE_ROWS = (1, 64, 256)


def run(report: SectionReport, pdl: bool) -> None:
    for model in MODELS:
        for rows in ROWS:
            with report.attempt(f"{model.name} pointwise {rows}"):
                _pointwise(report, model, rows, pdl)
            torch.cuda.empty_cache()
        for rows in SAMPLE_ROWS:
            with report.attempt(f"{model.name} sample {rows}"):
                _sample(report, model, rows, pdl)
            torch.cuda.empty_cache()


def _pointwise(report: SectionReport, model: ModelShape, rows: int, pdl: bool) -> None:
    def floor(elements: int) -> float:
        return elements * DTYPE.itemsize / READ_BYTES_PER_S * 1e6

    hidden_sets = [
        (randn(rows, model.hidden), randn(rows, model.hidden))
        for _ in range(num_sets(4 * rows * model.hidden, most=16))
    ]
    weight, out = randn(model.hidden), torch.empty(rows, model.hidden, dtype=DTYPE, device="cuda")
    norms = [lambda s=s, r=r: fused_add_rms_norm(s, r, weight, EPS, out=out, pdl=pdl) for s, r in hidden_sets]
    report.add(
        model.name, f"add_rms_norm {rows}", "triton", time_in_graph(norms), floor_us=floor(4 * rows * model.hidden)
    )
    quantizations = [lambda s=s: quantize_per_token(s, pdl=pdl) for s, _ in hidden_sets]
    report.add(
        model.name,
        f"quantize {rows}",
        "triton",
        time_in_graph(quantizations),
        floor_us=floor(rows * model.hidden * 3 // 2),
    )

    width = 2 * model.intermediate
    gate_ups = [randn(rows, width) for _ in range(num_sets(2 * rows * width, most=16))]
    activated = torch.empty(rows, model.intermediate, dtype=DTYPE, device="cuda")
    activations = [lambda g=g: silu_and_mul(g, out=activated, pdl=pdl) for g in gate_ups]
    report.add(
        model.name, f"silu_and_mul {rows}", "triton", time_in_graph(activations), floor_us=floor(rows * width * 3 // 2)
    )

    pages = paged_inputs(model, [512] * rows)
    table = rotary_table(32_768, model.head_dim, THETA, torch.device("cuda"))
    query = torch.empty(rows, model.num_heads, model.head_dim, dtype=DTYPE, device="cuda")
    packed = [randn(rows, model.qkv) for _ in range(num_sets(2 * rows * model.qkv, most=16))]
    rotations = [
        lambda qkv=qkv: rotary_and_store(
            qkv, pages.positions, table, SECTIONS, pages.key_cache, pages.value_cache, pages.slots, out=query, pdl=pdl
        )
        for qkv in packed
    ]
    report.add(
        model.name, f"rotary_and_store {rows}", "triton", time_in_graph(rotations), floor_us=floor(2 * rows * model.qkv)
    )


def _sample(report: SectionReport, model: ModelShape, rows: int, pdl: bool) -> None:
    seeds, positions = torch.arange(rows, device="cuda"), torch.arange(rows, device="cuda") + 5
    out = torch.empty(rows, dtype=torch.int64, device="cuda")
    logits = [randn(rows, model.vocab) for _ in range(num_sets(2 * rows * model.vocab, least=2, most=32))]
    floor = 2 * rows * model.vocab / READ_BYTES_PER_S * 1e6
    for name, temperature in (("greedy", 0.0), ("drawn", 0.8)):
        temperatures = torch.full((rows,), temperature, device="cuda")
        calls = [partial(sample, rows_of, temperatures, seeds, positions, out=out, pdl=pdl) for rows_of in logits]
        report.add(model.name, f"sample {rows}", name, time_in_graph(calls, rounds=8), floor_us=floor)
    calls = [lambda row=row: row.argmax(-1) for row in logits]
    report.add(model.name, f"sample {rows}", "torch argmax", time_in_graph(calls, rounds=8), floor_us=floor)
