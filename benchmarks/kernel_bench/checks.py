"""Every kernel against its reference, in bfloat16 on the GPU, at the shapes of the models."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from benchmarks.kernel_bench.report import SectionReport
from benchmarks.kernel_bench.shapes import (
    DTYPE,
    EPS,
    MODELS,
    SECTIONS,
    THETA,
    ModelShape,
    paged_inputs,
    randn,
    random_weight,
)
from triptych.kernels.activation import silu_and_mul, silu_and_mul_reference
from triptych.kernels.decode_attention import (
    DecodeWorkspace,
    choose_num_splits,
    paged_decode_attention,
    rotary_decode_attention,
)
from triptych.kernels.dense_prefill import DENSE_VARIANTS
from triptych.kernels.fp8 import (
    fp8_linear,
    fp8_linear_reference,
    quantize_per_token,
    quantize_per_token_reference,
    quantize_weight,
)
from triptych.kernels.norm import fused_add_rms_norm, fused_add_rms_norm_reference, rms_norm, rms_norm_reference
from triptych.kernels.paged import paged_attention_reference
from triptych.kernels.prefill_attention import paged_prefill_attention
from triptych.kernels.rotary import rotary_and_store, rotary_and_store_reference, rotary_table
from triptych.kernels.sample import perturbed_logits_reference, sample
from triptych.kernels.skinny_linear import SkinnyTiling, skinny_linear, skinny_linear_reference

LIMIT = 1e-2
# (sequences, page size)
DECODE_CASES = ((1, 16), (8, 16), (8, 64), (64, 16))
DECODE_LENGTHS = [1, 15, 16, 17, 512, 0, 2048, 700]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖ in float32; infinite when a value is not finite."""
    actual, expected = actual.float(), expected.float()
    if not bool(actual.isfinite().all()):
        return float("inf")
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-20))


def run(report: SectionReport) -> None:
    for model in MODELS:
        for check in (_pointwise, _rotary, _decode, _prefill, _dense, _sample, _fp8, _skinny):
            with report.attempt(f"{model.name} {check.__name__.strip('_')}"):
                check(report, model)
                torch.cuda.synchronize()


def expect(report: SectionReport, label: str, actual: Tensor, expected: Tensor, limit: float = LIMIT) -> None:
    error = relative_error(actual, expected)
    report.checks[label] = error
    if not error <= limit:
        report.errors[label] = f"relative error {error:.3g}, at most {limit:g}"
        print(f"WRONG {label}: {error:.3g}", flush=True)


def _pointwise(report: SectionReport, model: ModelShape) -> None:
    for rows in (1, 3, 1400):
        states, residual = randn(rows, model.hidden, scale=3.0), randn(rows, model.hidden)
        weight, out = randn(model.hidden), torch.full((rows, model.hidden), torch.nan, dtype=DTYPE, device="cuda")
        expected = rms_norm_reference(states.float(), weight.float(), EPS)
        expect(report, f"{model.name} rms_norm {rows}", rms_norm(states, weight, EPS, out=out), expected)
        normed, total = fused_add_rms_norm_reference(states.float(), residual.float(), weight.float(), EPS)
        for pdl in (False, True):
            summed = residual.clone()
            actual = fused_add_rms_norm(states, summed, weight, EPS, pdl=pdl)
            expect(report, f"{model.name} fused_add_rms_norm {rows} pdl={pdl}", actual, normed)
            expect(report, f"{model.name} fused_add_rms_norm residual {rows} pdl={pdl}", summed, total)
        gate_up = randn(rows, 2 * model.intermediate, scale=2.0)
        expect(
            report, f"{model.name} silu_and_mul {rows}", silu_and_mul(gate_up), silu_and_mul_reference(gate_up.float())
        )


def _rotary(report: SectionReport, model: ModelShape) -> None:
    pages = paged_inputs(model, DECODE_LENGTHS)
    count = len(DECODE_LENGTHS)
    qkv, positions = randn(count, model.qkv), torch.randint(0, 30_000, (3, count), device="cuda")
    table = rotary_table(32_768, model.head_dim, THETA, torch.device("cuda"))
    caches = [pages.key_cache.float(), pages.value_cache.float()]
    expected = rotary_and_store_reference(qkv.float(), positions, table, SECTIONS, *caches, pages.slots)
    actual = rotary_and_store(
        qkv, positions, table, SECTIONS, pages.key_cache, pages.value_cache, pages.slots, pdl=True
    )
    expect(report, f"{model.name} rotary query", actual, expected)
    expect(report, f"{model.name} rotary key cache", pages.key_cache, caches[0])
    expect(report, f"{model.name} rotary value cache", pages.value_cache, caches[1], 0.0)


def _decode(report: SectionReport, model: ModelShape) -> None:
    table = rotary_table(4096, model.head_dim, THETA, torch.device("cuda"))
    generator = random.Random(0)
    for batch, page_size in DECODE_CASES:
        lengths = [generator.randrange(1, 3000) for _ in range(batch)] if batch != 8 else DECODE_LENGTHS
        pages = paged_inputs(model, lengths, page_size=page_size, max_context=4096)
        splits = choose_num_splits(batch, model.num_kv_heads, 4096)
        workspace = DecodeWorkspace.of(
            batch, model.num_heads, model.num_kv_heads, model.head_dim, splits, torch.device("cuda")
        )
        qkv = randn(batch, model.qkv)
        caches = [pages.key_cache.clone(), pages.value_cache.clone()]
        query = rotary_and_store_reference(qkv, pages.positions, table, SECTIONS, *caches, pages.slots)
        expected = paged_attention_reference(query, *caches, pages.block_table, lengths, [1] * batch)
        for is_merged_by_last in (True, False):
            label = f"{model.name} decode batch={batch} page={page_size} splits={splits} last={is_merged_by_last}"
            runs = [
                paged_decode_attention(
                    query, *caches, pages.block_table, pages.context_lengths, workspace,
                    out=torch.full_like(query, torch.nan), is_merged_by_last=is_merged_by_last,
                )
                for _ in range(10)
            ]  # fmt: skip
            expect(report, label, runs[0], expected)
            # Splits are merged in one order, so any difference between runs is a race.
            expect(report, f"{label} repeated", torch.stack(runs[1:]), runs[0].expand(9, -1, -1, -1), 0.0)
            actual = rotary_decode_attention(
                qkv, pages.positions, table, SECTIONS, pages.key_cache, pages.value_cache, pages.slots,
                pages.block_table, pages.context_lengths, workspace, is_merged_by_last=is_merged_by_last, pdl=True,
            )  # fmt: skip
            expect(report, f"{label} with rotation", actual, expected)
            expect(report, f"{label} with rotation, key cache", pages.key_cache, caches[0])


def _prefill(report: SectionReport, model: ModelShape) -> None:
    query_lengths, context_lengths = [300, 64, 1, 0, 1000], [300, 700, 513, 0, 1900]
    for page_size in (16, 64):
        pages = paged_inputs(model, context_lengths, page_size=page_size)
        query = randn(sum(query_lengths), model.num_heads, model.head_dim)
        cu_seqlens = torch.tensor([0, *torch.tensor(query_lengths).cumsum(0)], dtype=torch.int32, device="cuda")
        arguments = (query, pages.key_cache, pages.value_cache, pages.block_table)
        actual = paged_prefill_attention(
            *arguments, pages.context_lengths, cu_seqlens, out=torch.full_like(query, torch.nan)
        )
        expected = paged_attention_reference(*arguments, context_lengths, query_lengths)
        expect(report, f"{model.name} prefill page={page_size}", actual, expected)


def _dense(report: SectionReport, model: ModelShape) -> None:
    lengths = [700, 400]
    query = randn(sum(lengths), model.num_heads, model.head_dim)
    key, value = (randn(sum(lengths), model.num_kv_heads, model.head_dim) for _ in range(2))
    cu_seqlens = torch.tensor([0, 700, 1100], dtype=torch.int32, device="cuda")
    expected = DENSE_VARIANTS["sdpa"](query.float(), key.float(), value.float(), lengths, cu_seqlens)
    for name, attend in DENSE_VARIANTS.items():
        with report.attempt(f"{model.name} dense {name}"):
            actual = attend(query, key, value, lengths, cu_seqlens)
            expect(report, f"{model.name} dense {name}", actual, expected)


def _sample(report: SectionReport, model: ModelShape) -> None:
    rows = 9
    temperatures = torch.tensor([0.0, 1.0, 0.5] * 3, device="cuda")
    seeds, positions = torch.randint(-(2**62), 2**62, (rows,), device="cuda"), torch.arange(rows, device="cuda")
    for dtype in (torch.bfloat16, torch.float32):
        logits = torch.randn(rows, model.vocab, device="cuda").to(dtype) * 2
        perturbed = perturbed_logits_reference(logits, temperatures, seeds, positions)
        ids = sample(logits, temperatures, seeds, positions, pdl=True)
        # Logarithms differ in their last bits, so of two tokens that close either may win.
        lost = perturbed.amax(-1) - perturbed.gather(1, ids[:, None])[:, 0]
        expect(report, f"{model.name} sample {dtype}", perturbed.amax(-1) - lost, perturbed.amax(-1), 1e-4)


def _fp8(report: SectionReport, model: ModelShape) -> None:
    states, weight, bias = randn(33, model.hidden), random_weight(model.qkv, model.hidden), randn(model.qkv)
    quantized, scales = quantize_per_token(states)
    expected, expected_scales = quantize_per_token_reference(states)
    expect(report, f"{model.name} quantize scales", scales, expected_scales, 1e-5)
    # A last bit of the scale moves a value to the neighbouring step now and then.
    expect(report, f"{model.name} quantize values", quantized.float(), expected.float(), 5e-3)
    packed = quantize_weight(weight)
    expected = fp8_linear_reference(quantized, scales, *packed, bias)
    expect(report, f"{model.name} fp8_linear", fp8_linear(quantized, scales, *packed, bias), expected)
    full = states.float() @ weight.float().t() + bias.float()
    expect(report, f"{model.name} fp8_linear against float32", fp8_linear(quantized, scales, *packed, bias), full, 0.05)


def _skinny(report: SectionReport, model: ModelShape) -> None:
    norm_weight = randn(model.hidden)
    weights = {name: random_weight(*shape) for name, shape in model.linears().items() if name != "lm_head"}
    tilings = {
        1: SkinnyTiling("vector", 4, 1024, 4),
        3: SkinnyTiling("vector", 4, 512, 4),
        16: SkinnyTiling("matrix", 16, 256, 2, 4),
    }
    for rows, tiling in tilings.items():
        for pdl in (False, True):
            states, residual = randn(rows, model.hidden), randn(rows, model.hidden)
            wide, weight = states.float(), norm_weight.float()
            bias = randn(model.qkv)
            label = f"{model.name} skinny {tiling.kind} tokens={rows} pdl={pdl}"
            actual = skinny_linear(
                states, weights["qkv"], bias, norm_weight=norm_weight, eps=EPS, tiling=tiling, pdl=pdl
            )
            expected = skinny_linear_reference(wide, weights["qkv"].float(), bias.float(), norm_weight=weight, eps=EPS)
            expect(report, f"{label} norm, bias", actual, expected)
            actual = skinny_linear(
                states, weights["gate_up"], norm_weight=norm_weight, eps=EPS, is_gated=True, tiling=tiling, pdl=pdl
            )
            expected = skinny_linear_reference(
                wide, weights["gate_up"].float(), norm_weight=weight, eps=EPS, is_gated=True
            )
            expect(report, f"{label} norm, gated", actual, expected)
            down = weights["down"]
            total = skinny_linear(actual, down, residual=residual, out=residual.clone(), tiling=tiling, pdl=pdl)
            expected = skinny_linear_reference(actual.float(), down.float(), residual=residual.float())
            expect(report, f"{label} residual", total, expected)
