"""The linears of a decode step at 1 to 256 tokens: cuBLAS, `skinny_linear` in several tilings, FP8."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernel_bench.report import SectionReport
from benchmarks.kernel_bench.shapes import DTYPE, MODELS, ModelShape, randn, random_weight
from benchmarks.kernel_bench.timing import num_sets, time_in_graph
from triptych.kernels.fp8 import fp8_linear, quantize_per_token, quantize_weight
from triptych.kernels.skinny_linear import SkinnyTiling, skinny_linear

READ_BYTES_PER_S = 4.26e12
FLOPS = 740e12
CUBLAS_ROWS = (1, 4, 8, 16, 64, 256)
MATRIX = (SkinnyTiling("matrix", 16, 256, 2, 5), SkinnyTiling("matrix", 16, 512, 4, 4))
TILINGS = {
    1: (
        SkinnyTiling("vector", 2, 2048, 4),
        SkinnyTiling("vector", 4, 1024, 4),
        SkinnyTiling("vector", 4, 2048, 8),
        SkinnyTiling("vector", 8, 512, 4),
        SkinnyTiling("vector", 8, 1024, 8),
        SkinnyTiling("vector", 2, 512, 2),
        MATRIX[0],
    ),
    4: (SkinnyTiling("vector", 4, 512, 4), SkinnyTiling("vector", 4, 1024, 8), MATRIX[0]),
    8: MATRIX,
    16: MATRIX,
}
# Gated programs read two rows for each output, so their blocks are half as high.
GATED_TILINGS = {
    1: (
        SkinnyTiling("vector", 1, 2048, 4),
        SkinnyTiling("vector", 2, 1024, 4),
        SkinnyTiling("vector", 2, 2048, 8),
        SkinnyTiling("vector", 4, 512, 4),
        SkinnyTiling("vector", 4, 1024, 8),
        SkinnyTiling("vector", 1, 512, 2),
        SkinnyTiling("matrix", 16, 256, 2, 4),
    ),
    4: (SkinnyTiling("vector", 2, 512, 4), SkinnyTiling("vector", 2, 1024, 8), SkinnyTiling("matrix", 16, 256, 2, 4)),
    8: (SkinnyTiling("matrix", 16, 256, 2, 4), SkinnyTiling("matrix", 16, 256, 4, 4)),
    16: (SkinnyTiling("matrix", 16, 256, 2, 4), SkinnyTiling("matrix", 16, 256, 4, 4)),
}
FP8_ROWS = (1, 16, 64, 256, 1400)


def tiling_name(tiling: SkinnyTiling) -> str:
    return f"{tiling.kind[0]}{tiling.block_out}x{tiling.block_in}w{tiling.num_warps}"


def floor_us(rows: int, outputs: int, inputs: int, itemsize: int = 2) -> float:
    num_bytes = itemsize * outputs * inputs + 2 * rows * (outputs + inputs)
    return 1e6 * max(num_bytes / READ_BYTES_PER_S, 2 * rows * outputs * inputs / (FLOPS * 2 / itemsize))


def run(report: SectionReport, pdl: bool) -> None:
    with report.attempt("ceilings"):
        _ceilings(report)
    for model in MODELS:
        for name, (outputs, inputs) in model.linears().items():
            sets = num_sets(2 * outputs * inputs, least=2, most=32)
            weights = [random_weight(outputs, inputs) for _ in range(sets)]
            for rows in CUBLAS_ROWS:
                with report.attempt(f"{model.name} {name} {rows}"):
                    _linear(report, model, name, rows, weights, pdl)
            del weights
            torch.cuda.empty_cache()
    for model in MODELS:
        for name in ("qkv", "gate_up", "down"):
            with report.attempt(f"{model.name} {name} fp8"):
                _fp8(report, model, name)
            torch.cuda.empty_cache()


def _ceilings(report: SectionReport) -> None:
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    floor = 2 * source.nbytes / READ_BYTES_PER_S * 1e6
    report.add("-", "copy 4 GiB", "torch", time_in_graph([lambda: target.copy_(source)], rounds=5), floor_us=floor)
    report.add("-", "read 4 GiB", "torch sum", time_in_graph([lambda: source.sum()], rounds=5), floor_us=floor / 2)


def _linear(report: SectionReport, model: ModelShape, name: str, rows: int, weights: list[Tensor], pdl: bool) -> None:
    outputs, inputs = weights[0].shape
    label, floor = f"{name} m{rows}", floor_us(rows, outputs, inputs)
    states, out = randn(rows, inputs), torch.empty(rows, outputs, dtype=DTYPE, device="cuda")
    bias = randn(outputs) if name == "qkv" else None

    if bias is None:
        calls = [partial(torch.mm, states, weight.t(), out=out) for weight in weights]
    else:
        calls = [partial(torch.addmm, bias, states, weight.t(), out=out) for weight in weights]
    report.add(model.name, label, "cublas", time_in_graph(calls), floor_us=floor)
    is_gated = name == "gate_up"
    for tiling in (GATED_TILINGS if is_gated else TILINGS).get(rows, ()):
        with report.attempt(f"{model.name} {label} {tiling}"):
            skinny_out = torch.empty(rows, outputs // (2 if is_gated else 1), dtype=DTYPE, device="cuda")
            # Folded in as in the decoder layer.
            norm_weight = randn(inputs) if name in ("qkv", "gate_up", "lm_head") else None
            residual = randn(rows, outputs) if name in ("o", "down") else None

            calls = [
                partial(
                    skinny_linear, states, weight, bias, residual=residual, norm_weight=norm_weight, eps=1e-6,
                    is_gated=is_gated, out=skinny_out, tiling=tiling, pdl=pdl,
                )
                for weight in weights
            ]  # fmt: skip
            samples = time_in_graph(calls)
            median_us = report.add(model.name, label, tiling_name(tiling), samples, floor_us=floor)
            best = report.notes.setdefault(f"best {model.name} {name} {rows}", [median_us, vars(tiling)])
            assert isinstance(best, list)
            if median_us < best[0]:
                best[:] = [median_us, vars(tiling)]


def _fp8(report: SectionReport, model: ModelShape, name: str) -> None:
    outputs, inputs = model.linears()[name]
    packed = [
        quantize_weight(random_weight(outputs, inputs)) for _ in range(num_sets(outputs * inputs, least=2, most=16))
    ]
    wide = random_weight(outputs, inputs)
    for rows in FP8_ROWS:
        states = randn(rows, inputs)
        quantized, scales = quantize_per_token(states)
        label, floor = f"fp8 {name} m{rows}", floor_us(rows, outputs, inputs, itemsize=1)
        calls = [partial(fp8_linear, quantized, scales, *pair) for pair in packed]
        report.add(model.name, label, "scaled_mm", time_in_graph(calls, rounds=8), floor_us=floor)
        calls = [partial(_quantize_and_multiply, states, *pair) for pair in packed]
        report.add(model.name, label, "quantize+mm", time_in_graph(calls, rounds=8), floor_us=floor)
        if rows == FP8_ROWS[-1]:
            report.add(model.name, label, "bf16", time_in_graph([partial(F.linear, states, wide)] * 4), floor_us=floor)


def _quantize_and_multiply(states: Tensor, weight: Tensor, weight_scales: Tensor) -> Tensor:
    return fp8_linear(*quantize_per_token(states), weight, weight_scales)
