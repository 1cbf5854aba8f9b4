"""The kernels where they belong: compiled, in bfloat16, in CUDA graphs, launched dependently."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from triptych.kernels.batch_linear import BatchTiling, batch_linear, batch_linear_reference
from triptych.kernels.decode_attention import DecodeWorkspace, rotary_decode_attention
from triptych.kernels.dense_prefill import DENSE_VARIANTS
from triptych.kernels.fp8 import fp8_linear, fp8_linear_reference, quantize_per_token, quantize_weight
from triptych.kernels.norm import fused_add_rms_norm, fused_add_rms_norm_reference
from triptych.kernels.paged import paged_attention_reference
from triptych.kernels.prefetch import Upcoming
from triptych.kernels.prefill_attention import paged_prefill_attention
from triptych.kernels.rotary import rotary_and_store_reference, rotary_table
from triptych.kernels.sample import perturbed_logits_reference, sample
from triptych.kernels.skinny_linear import SkinnyTiling, skinny_linear, skinny_linear_reference

pytestmark = pytest.mark.gpu
DTYPE, DEVICE = torch.bfloat16, torch.device("cuda")
HEAD_DIM, PAGE_SIZE, SECTIONS = 128, 16, (16, 24, 24)
HEADS = [(16, 2), (28, 4)]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert bool(actual.isfinite().all())
    assert float((actual.float() - expected.float()).norm() / expected.float().norm()) < 1e-2


@pytest.mark.parametrize("is_merged_by_last", [True, False])
@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_one_captured_decode_serves_every_length(
    num_heads: int, num_kv_heads: int, pdl: bool, is_merged_by_last: bool
) -> None:
    batch, max_pages, num_splits = 6, 128, 12
    cache = randn(2, batch * max_pages, PAGE_SIZE, num_kv_heads, HEAD_DIM)
    table = torch.randperm(batch * max_pages, device=DEVICE).view(batch, max_pages).to(torch.int32)
    rotary = rotary_table(4096, HEAD_DIM, 1e6, DEVICE)
    qkv = randn(batch, (num_heads + 2 * num_kv_heads) * HEAD_DIM)
    positions = torch.zeros(3, batch, dtype=torch.int64, device=DEVICE)
    slots = torch.full((batch,), -1, dtype=torch.int64, device=DEVICE)
    lengths = torch.zeros(batch, dtype=torch.int32, device=DEVICE)
    out = torch.empty(batch, num_heads, HEAD_DIM, dtype=DTYPE, device=DEVICE)
    workspace = DecodeWorkspace.of(batch, num_heads, num_kv_heads, HEAD_DIM, num_splits, DEVICE)

    def decode() -> None:
        rotary_decode_attention(
            qkv, positions, rotary, SECTIONS, cache[0], cache[1], slots, table, lengths, workspace, out=out,
            is_merged_by_last=is_merged_by_last, pdl=pdl,
        )  # fmt: skip

    decode()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode()
    for new_lengths in ([1, 0, 17, 2048, 512, 63], [2047, 2048, 0, 0, 1, 64]):
        qkv.copy_(randn(*qkv.shape))
        lengths.copy_(torch.tensor(new_lengths))
        positions.copy_((lengths.long() - 1).clamp(min=0).expand(3, -1))
        pages = table.gather(1, positions[:1].t() // PAGE_SIZE)[:, 0].long()
        slots.copy_(torch.where(lengths > 0, pages * PAGE_SIZE + positions[0] % PAGE_SIZE, -1))
        expected_caches = [cache[0].clone(), cache[1].clone()]
        query = rotary_and_store_reference(qkv, positions, rotary, SECTIONS, *expected_caches, slots)
        expected = paged_attention_reference(query, *expected_caches, table, new_lengths, [1] * batch)
        out.fill_(torch.nan)
        graph.replay()
        close(out, expected)
        close(cache[0], expected_caches[0])
        torch.testing.assert_close(cache[1], expected_caches[1], rtol=0, atol=0)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_prefill_of_chunks_and_decodes(num_heads: int, num_kv_heads: int) -> None:
    query_lengths, context_lengths = [300, 64, 1, 0, 1000], [300, 700, 513, 0, 1900]
    cache = randn(2, 5 * 128, PAGE_SIZE, num_kv_heads, HEAD_DIM)
    table = torch.randperm(5 * 128, device=DEVICE).view(5, 128).to(torch.int32)
    query = randn(sum(query_lengths), num_heads, HEAD_DIM)
    cu_seqlens = torch.tensor([0, 300, 364, 365, 365, 1365], dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor(context_lengths, dtype=torch.int32, device=DEVICE)
    out = torch.full_like(query, torch.nan)
    paged_prefill_attention(query, cache[0], cache[1], table, lengths, cu_seqlens, out=out)
    close(out, paged_attention_reference(query, cache[0], cache[1], table, context_lengths, query_lengths))


@pytest.mark.parametrize("variant", sorted(DENSE_VARIANTS))
def test_dense_prefill(variant: str) -> None:
    lengths, cu_seqlens = [700, 400], torch.tensor([0, 700, 1100], dtype=torch.int32, device=DEVICE)
    query, key, value = (randn(1100, heads, HEAD_DIM) for heads in (28, 4, 4))
    expected = DENSE_VARIANTS["sdpa"](query.float(), key.float(), value.float(), lengths, cu_seqlens)
    close(DENSE_VARIANTS[variant](query, key, value, lengths, cu_seqlens), expected)


@pytest.mark.parametrize("pdl", [False, True])
def test_a_chain_of_dependent_launches_in_a_graph(pdl: bool) -> None:
    """Each layer reads what the one before wrote: one wait too few, and the numbers are off."""
    hidden, intermediate, tiling = 2048, 11_008, SkinnyTiling("vector", 4, 1024, 4)
    scale = hidden**-0.5
    up = [randn(2 * intermediate, hidden) * scale for _ in range(4)]
    down = [randn(hidden, intermediate) * intermediate**-0.5 for _ in range(4)]
    norm_weight, states = randn(hidden), randn(1, hidden)
    residual, activated = states.clone(), torch.empty(1, intermediate, dtype=DTYPE, device=DEVICE)

    def layers() -> None:
        for gate_up, back in zip(up, down, strict=True):
            skinny_linear(
                residual,
                gate_up,
                norm_weight=norm_weight,
                eps=1e-6,
                is_gated=True,
                out=activated,
                tiling=tiling,
                pdl=pdl,
            )
            skinny_linear(activated, back, residual=residual, out=residual, tiling=tiling, pdl=pdl)

    layers()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers()
    expected = states.float()
    for gate_up, back in zip(up, down, strict=True):
        options = {"norm_weight": norm_weight.float(), "eps": 1e-6, "is_gated": True}
        expected = skinny_linear_reference(
            skinny_linear_reference(expected, gate_up.float(), **options), back.float(), residual=expected
        )
    results = []
    for _ in range(5):
        residual.copy_(states)
        graph.replay()
        results.append(residual.clone())
    close(results[0], expected)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("num_tokens", [1, 4, 16])
@pytest.mark.parametrize("pdl", [False, True])
def test_skinny_linear(num_tokens: int, pdl: bool) -> None:
    states, weight, bias = randn(num_tokens, 3584), randn(4608, 3584) / 60, randn(4608)
    norm_weight = randn(3584)
    actual = skinny_linear(states, weight, bias, norm_weight=norm_weight, eps=1e-6, pdl=pdl)
    expected = skinny_linear_reference(
        states.float(), weight.float(), bias.float(), norm_weight=norm_weight.float(), eps=1e-6
    )
    close(actual, expected)


@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("num_tokens", [3, 64, 128])
def test_mlp_of_a_batch_in_a_graph(num_tokens: int, pdl: bool) -> None:
    """Gate folded in, the product in parts, the norm that adds them up; then the same over what came out."""
    hidden, intermediate = 2_048, 11_008
    gate_up, down = randn(2 * intermediate, hidden) * hidden**-0.5, randn(hidden, intermediate) * intermediate**-0.5
    norm_weight, states, residual = randn(hidden), randn(num_tokens, hidden), randn(num_tokens, hidden)
    tilings = BatchTiling(64, 64, num_stages=3), BatchTiling(64, 64, num_splits=4)

    def layers(states: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            activated = batch_linear(states, gate_up, is_gated=True, tiling=tilings[0], pdl=pdl)
            parts = batch_linear(activated, down, tiling=tilings[1], pdl=pdl)
            states = fused_add_rms_norm(parts, total, norm_weight, 1e-6, pdl=pdl)
        return states

    layers(states, residual.clone())
    torch.cuda.synchronize()
    total, graph = residual.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = layers(states, total)
    total.copy_(residual)
    graph.replay()
    expected, wide = states.float(), residual.float()
    for _ in range(3):
        activated = batch_linear_reference(expected, gate_up.float(), is_gated=True)
        product = batch_linear_reference(activated, down.float())
        expected, wide = fused_add_rms_norm_reference(product, wide, norm_weight.float(), 1e-6)
    close(total, wide)
    close(actual, expected)


@pytest.mark.parametrize("num_rows", [1, 64])
def test_fp8_linear(num_rows: int) -> None:
    states, weight, bias = randn(num_rows, 2048), randn(2560, 2048) / 45, randn(2560)
    quantized, packed = quantize_per_token(states), quantize_weight(weight)
    actual = fp8_linear(*quantized, *packed, bias)
    close(actual, fp8_linear_reference(*quantized, *packed, bias))
    full = states.float() @ weight.float().t() + bias.float()
    assert float((actual.float() - full).norm() / full.norm()) < 0.05


def test_sample_takes_a_token_with_the_highest_perturbed_logit() -> None:
    logits = torch.randn(64, 152_064, device=DEVICE).to(DTYPE) * 2
    temperatures = torch.rand(64, device=DEVICE).round(decimals=1)
    seeds, positions = torch.randint(-(2**62), 2**62, (64,), device=DEVICE), torch.arange(64, device=DEVICE)
    perturbed = perturbed_logits_reference(logits, temperatures, seeds, positions)
    ids = sample(logits, temperatures, seeds, positions, pdl=True)
    assert float((perturbed.amax(-1) - perturbed.gather(1, ids[:, None])[:, 0]).max()) < 1e-3


def test_dependent_norms_add_up() -> None:
    states, weight, total = randn(64, 2048), randn(2048), randn(64, 2048)
    expected = total.clone()
    for _ in range(20):
        fused_add_rms_norm(states, expected, weight, 1e-6)
        fused_add_rms_norm(states, total, weight, 1e-6, pdl=True)
    torch.testing.assert_close(total, expected, rtol=0, atol=0)


def test_skinny_linear_reads_fp8() -> None:
    states, weight = randn(1, 2048), randn(512, 2048) / 45
    quantized, scales = quantize_weight(weight)
    widened = (quantized.float() * scales.t()).to(DTYPE)
    for tiling in (SkinnyTiling("vector", 4, 1024, 4), SkinnyTiling("vector", 4, 512, 4, 2)):
        actual = skinny_linear(states, quantized, weight_scales=scales.view(-1), tiling=tiling)
        close(actual, skinny_linear_reference(states, widened))


def test_upcoming_weight_changes_nothing() -> None:
    """What is fetched meanwhile is right there, and attention does not care."""
    batch, max_pages = 1, 32
    cache = randn(2, max_pages, PAGE_SIZE, 2, HEAD_DIM)
    table = torch.arange(max_pages, device=DEVICE, dtype=torch.int32)[None]
    lengths = torch.full((batch,), 300, dtype=torch.int32, device=DEVICE)
    weight = randn(22_016, 2_048)
    results = []
    for num_bytes in (0, 8 << 20, 16 << 20, 1 << 30):
        workspace = DecodeWorkspace.of(batch, 16, 2, HEAD_DIM, 8, DEVICE)
        results.append(
            rotary_decode_attention(
                torch.ones(batch, 20 * HEAD_DIM, dtype=DTYPE, device=DEVICE),
                torch.full((3, batch), 299, device=DEVICE), rotary_table(512, HEAD_DIM, 1e6, DEVICE), SECTIONS,
                cache[0], cache[1], torch.full((batch,), -1, device=DEVICE), table, lengths, workspace,
                upcoming=Upcoming(weight, num_bytes),
            )
        )  # fmt: skip
    torch.cuda.synchronize()
    assert all(torch.equal(result, results[0]) for result in results)
