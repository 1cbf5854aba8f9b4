"""A chain of whole decoder layers in one CUDA graph, and what it says about a decode step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.kernel_bench.checks import relative_error
from benchmarks.kernel_bench.report import SectionReport
from benchmarks.kernel_bench.shapes import (
    DTYPE,
    EPS,
    MODELS,
    SECTIONS,
    THETA,
    ModelShape,
    PagedInputs,
    paged_inputs,
    randn,
    random_weight,
)
from benchmarks.kernel_bench.timing import median, time_in_graph
from triptych.kernels.activation import silu_and_mul
from triptych.kernels.decode_attention import (
    DecodeWorkspace,
    choose_num_splits,
    paged_decode_attention,
    rotary_decode_attention,
)
from triptych.kernels.norm import fused_add_rms_norm, rms_norm
from triptych.kernels.rotary import rotary_and_store, rotary_table
from triptych.kernels.sample import sample
from triptych.kernels.skinny_linear import MAX_TOKENS, SkinnyTiling, choose_tiling, skinny_linear

READ_BYTES_PER_S = 4.26e12
MAX_CONTEXT = 32_768
NUM_LAYERS = 4
BATCHES = (1, 8, 64, 256)
CONTEXTS = (512, 2048)
Tilings = dict[str, SkinnyTiling]


@dataclass(frozen=True)
class LayerWeights:
    qkv: Tensor
    qkv_bias: Tensor
    o: Tensor
    gate_up: Tensor
    down: Tensor
    input_norm: Tensor
    post_norm: Tensor


class LayerChain:
    """Buffers and inputs of a decode step of one batch; `separate`, `joined` and `skinny` run the same layers."""

    def __init__(self, model: ModelShape, weights: list[LayerWeights], batch: int, context: int) -> None:
        self.model, self.weights, self.batch = model, weights, batch
        self.pages = [paged_inputs(model, [context] * batch, max_context=MAX_CONTEXT) for _ in weights]
        self.table = rotary_table(MAX_CONTEXT, model.head_dim, THETA, torch.device("cuda"))
        num_splits = choose_num_splits(batch, model.num_kv_heads, MAX_CONTEXT)
        self.workspace = DecodeWorkspace.of(
            batch, model.num_heads, model.num_kv_heads, model.head_dim, num_splits, torch.device("cuda")
        )
        self.embeddings = randn(batch, model.hidden)
        self.hidden = torch.empty_like(self.embeddings)  # the residual stream
        self.normed, self.projected = torch.empty_like(self.hidden), torch.empty_like(self.hidden)
        self.qkv = torch.empty(batch, model.qkv, dtype=DTYPE, device="cuda")
        self.query = torch.empty(batch, model.num_heads, model.head_dim, dtype=DTYPE, device="cuda")
        self.attended = torch.empty_like(self.query)
        self.gate_up = torch.empty(batch, 2 * model.intermediate, dtype=DTYPE, device="cuda")
        self.activated = torch.empty(batch, model.intermediate, dtype=DTYPE, device="cuda")

    def separate(self, pdl: bool) -> None:
        """9 kernels a layer: cuBLAS, and one kernel for each thing between."""
        self._blas_layers(self._rotate_then_attend, pdl)

    def joined(self, pdl: bool) -> None:
        """8 kernels a layer: rotation, store and attention are one."""
        self._blas_layers(self._rotate_and_attend, pdl)

    def skinny(self, tilings: Tilings, pdl: bool) -> None:
        """5 kernels a layer: all that stands between linears is folded into them, but for attention."""
        torch.mul(self.embeddings, 1, out=self.hidden)  # a kernel, which a dependent launch may follow; copy_ is none
        for weights, pages in zip(self.weights, self.pages, strict=True):
            skinny_linear(
                self.hidden, weights.qkv, weights.qkv_bias, norm_weight=weights.input_norm, eps=EPS, out=self.qkv,
                tiling=tilings["qkv"], pdl=pdl,
            )  # fmt: skip
            self._rotate_and_attend(pages, pdl)
            attended = self.attended.view(self.batch, -1)
            skinny_linear(attended, weights.o, residual=self.hidden, out=self.hidden, tiling=tilings["o"], pdl=pdl)
            skinny_linear(
                self.hidden, weights.gate_up, norm_weight=weights.post_norm, eps=EPS, is_gated=True,
                out=self.activated, tiling=tilings["gate_up"], pdl=pdl,
            )  # fmt: skip
            skinny_linear(
                self.activated, weights.down, residual=self.hidden, out=self.hidden, tiling=tilings["down"], pdl=pdl
            )

    def _blas_layers(self, attend: Callable[[PagedInputs, bool], None], pdl: bool) -> None:
        torch.mul(self.embeddings, 1, out=self.hidden)  # a kernel, which a dependent launch may follow; copy_ is none
        rms_norm(self.hidden, self.weights[0].input_norm, EPS, out=self.normed, pdl=pdl)
        for index, (weights, pages) in enumerate(zip(self.weights, self.pages, strict=True)):
            torch.addmm(weights.qkv_bias, self.normed, weights.qkv.t(), out=self.qkv)
            attend(pages, pdl)
            torch.mm(self.attended.view(self.batch, -1), weights.o.t(), out=self.projected)
            fused_add_rms_norm(self.projected, self.hidden, weights.post_norm, EPS, out=self.normed, pdl=pdl)
            torch.mm(self.normed, weights.gate_up.t(), out=self.gate_up)
            silu_and_mul(self.gate_up, out=self.activated, pdl=pdl)
            torch.mm(self.activated, weights.down.t(), out=self.projected)
            next_norm = self.weights[(index + 1) % len(self.weights)].input_norm
            fused_add_rms_norm(self.projected, self.hidden, next_norm, EPS, out=self.normed, pdl=pdl)

    def _rotate_then_attend(self, pages: PagedInputs, pdl: bool) -> None:
        rotary_and_store(
            self.qkv, pages.positions, self.table, SECTIONS, pages.key_cache, pages.value_cache, pages.slots,
            out=self.query, pdl=pdl,
        )  # fmt: skip
        paged_decode_attention(
            self.query, pages.key_cache, pages.value_cache, pages.block_table, pages.context_lengths, self.workspace,
            out=self.attended, pdl=pdl,
        )  # fmt: skip

    def _rotate_and_attend(self, pages: PagedInputs, pdl: bool) -> None:
        rotary_decode_attention(
            self.qkv, pages.positions, self.table, SECTIONS, pages.key_cache, pages.value_cache, pages.slots,
            pages.block_table, pages.context_lengths, self.workspace, out=self.attended, pdl=pdl,
        )  # fmt: skip


def run(report: SectionReport, pdl: bool, best_tilings: dict[str, object]) -> None:
    for model in MODELS:
        weights = [_layer_weights(model) for _ in range(NUM_LAYERS)]
        tails: dict[int, float] = {}
        lm_head = random_weight(model.vocab, model.hidden)
        for batch in BATCHES:
            with report.attempt(f"{model.name} tail {batch}"):
                tails[batch] = _tail(report, model, lm_head, batch, pdl, best_tilings)
        del lm_head
        for batch in BATCHES:
            for context in CONTEXTS:
                with report.attempt(f"{model.name} layer {batch} x {context}"):
                    chain = LayerChain(model, weights, batch, context)
                    _chain(report, chain, context, tails.get(batch, 0.0), pdl, best_tilings)
                    del chain
                torch.cuda.empty_cache()


def tilings_for(model: ModelShape, batch: int, best_tilings: dict[str, object]) -> Tilings | None:
    """What the gemm section found best for each linear at the nearest batch it tried; None without such a finding."""
    rows = next((tried for tried in (1, 4, 8, 16) if tried >= batch), None)
    found: Tilings = {}
    for name in model.linears():
        best = best_tilings.get(f"best {model.name} {name} {rows}")
        if not isinstance(best, list):
            return None
        found[name] = SkinnyTiling(**best[1])
    return found


def default_tilings(model: ModelShape, batch: int) -> Tilings:
    return {name: choose_tiling(batch, name == "gate_up") for name in model.linears()}


def _layer_weights(model: ModelShape) -> LayerWeights:
    linears = {name: random_weight(*shape) for name, shape in model.linears().items() if name != "lm_head"}
    return LayerWeights(
        **linears, qkv_bias=randn(model.qkv), input_norm=randn(model.hidden), post_norm=randn(model.hidden)
    )


def _tail(
    report: SectionReport, model: ModelShape, lm_head: Tensor, batch: int, pdl: bool, best_tilings: dict[str, object]
) -> float:
    """Final norm, lm_head, sampling: microseconds, the best way."""
    hidden, norm_weight = randn(batch, model.hidden), randn(model.hidden)
    normed, logits = torch.empty_like(hidden), torch.empty(batch, model.vocab, dtype=DTYPE, device="cuda")
    temperatures, seeds = torch.full((batch,), 0.7, device="cuda"), torch.arange(batch, device="cuda")
    ids = torch.empty(batch, dtype=torch.int64, device="cuda")

    def blas() -> None:
        rms_norm(hidden, norm_weight, EPS, out=normed, pdl=pdl)
        torch.mm(normed, lm_head.t(), out=logits)
        sample(logits, temperatures, seeds, seeds, out=ids, pdl=pdl)

    floor = lm_head.nbytes / READ_BYTES_PER_S * 1e6
    times = [report.add(model.name, f"tail {batch}", "cublas", time_in_graph([blas] * 2), floor_us=floor)]
    if batch <= MAX_TOKENS:
        tiling = (tilings_for(model, batch, best_tilings) or default_tilings(model, batch))["lm_head"]

        def skinny() -> None:
            skinny_linear(hidden, lm_head, norm_weight=norm_weight, eps=EPS, out=logits, tiling=tiling, pdl=pdl)
            sample(logits, temperatures, seeds, seeds, out=ids, pdl=pdl)

        with report.attempt(f"{model.name} tail {batch} skinny"):
            times.append(report.add(model.name, f"tail {batch}", "skinny", time_in_graph([skinny] * 2), floor_us=floor))
    return min(times)


def _chain(
    report: SectionReport, chain: LayerChain, context: int, tail_us: float, pdl: bool, best_tilings: dict[str, object]
) -> None:
    model, batch = chain.model, chain.batch
    label = f"layer b{batch} c{context}"
    weight_bytes = sum(2 * o * i for name, (o, i) in model.linears().items() if name != "lm_head")
    floor = (weight_bytes + batch * context * model.kv_bytes) / READ_BYTES_PER_S * 1e6
    tilings = tilings_for(model, batch, best_tilings) or default_tilings(model, batch)
    variants: dict[str, Callable[[], None]] = {
        "separate": lambda: chain.separate(False),
        "joined": lambda: chain.joined(False),
        "joined+pdl": lambda: chain.joined(True),
    }
    if batch <= MAX_TOKENS:
        variants |= {"skinny": lambda: chain.skinny(tilings, False), "skinny+pdl": lambda: chain.skinny(tilings, True)}
    expected: Tensor | None = None
    for name, run_layers in variants.items():
        if name.endswith("pdl") and not pdl:
            continue
        with report.attempt(f"{model.name} {label} {name}"):
            samples = [sample / NUM_LAYERS for sample in time_in_graph([run_layers], rounds=12)]
            layer_us = report.add(model.name, label, name, samples, floor_us=floor)
            step_ms = (model.num_layers * layer_us + tail_us) / 1e3
            report.notes[f"step {model.name} b{batch} c{context} {name}"] = round(step_ms, 3)
            result = chain.hidden.clone()
            expected = result if expected is None else expected
            error = relative_error(result, expected)
            report.checks[f"{model.name} {label} {name} against separate"] = error
            if not error <= 0.03:
                report.errors[f"{model.name} {label} {name}"] = f"relative error {error:.3g} against separate kernels"
            report.notes[f"spread {model.name} {label} {name}"] = round(
                (max(samples) - min(samples)) / median(samples), 3
            )
