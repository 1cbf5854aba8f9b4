"""The language model of Qwen2.5-VL on fused kernels: the same weights and results, fewer passes over memory."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.kernels.activation import silu_and_mul
from triptych.kernels.batch_linear import MAX_TOKENS as MAX_BATCH_TOKENS
from triptych.kernels.batch_linear import BatchTiling, batch_linear
from triptych.kernels.norm import fused_add_rms_norm, rms_norm
from triptych.kernels.prefetch import Upcoming
from triptych.kernels.rotary import rotary_table
from triptych.kernels.skinny_linear import SkinnyTiling, skinny_linear
from triptych.models.qwen2_5_vl.language import DecoderLayer, LanguageModel

_UPCOMING_BYTES = 8 << 20


@dataclass(frozen=True)
class PackedRotary:
    """positions: int64 [3, T]. table: float32 [max_position, head_dim], see `rotary_table`."""

    positions: Tensor
    table: Tensor
    sections: tuple[int, int, int]


@dataclass(frozen=True)
class SkinnyPlan:
    """How a step of few tokens is computed. A tiling of None is chosen by shape.

    upcoming_bytes: how much of the gate_up weight is fetched during the attention, see `prefetch`.
    """

    qkv: SkinnyTiling | None = None
    o: SkinnyTiling | None = None
    gate_up: SkinnyTiling | None = None
    down: SkinnyTiling | None = None
    upcoming_bytes: int = 0
    pdl: bool = False


@dataclass(frozen=True)
class BatchPlan:
    """How the linears of a batch of decodes are computed: through cuBLAS where there is no tiling."""

    qkv: BatchTiling | None = None
    o: BatchTiling | None = None
    gate_up: BatchTiling | None = None
    down: BatchTiling | None = None


class PackedAttention(Protocol):
    """Causal attention of one forward pass that rotates and stores as well."""

    def attend_packed(
        self, layer_index: int, qkv: Tensor, rotary: PackedRotary, upcoming: Upcoming | None = None
    ) -> Tensor:
        """qkv [T, (num_heads + 2 * num_kv_heads) * head_dim], as projected, to attention [T, num_heads * head_dim]."""
        ...


class FusedLanguageModel:
    """A LanguageModel's weights behind its interface, but for the attention and the dtype of the logits.

    max_position: positions of the rotary table; higher ones must not come. Steps of at most max_skinny_tokens tokens
    go through linears that take norm, activation and residual with them. pdl: see `triptych.kernels.launch`.
    """

    def __init__(
        self, model: LanguageModel, max_position: int, *, max_skinny_tokens: int = 0, pdl: bool = False
    ) -> None:
        self.model = model
        self.config = model.config
        self.max_position = max_position
        self.max_skinny_tokens = max_skinny_tokens
        self.pdl = pdl
        self._layers: list[DecoderLayer] = list(model.layers)  # type: ignore[arg-type]
        rotary = model.rotary
        device = model.embed_tokens.weight.device
        self._table = rotary_table(max_position, rotary.head_dim, rotary.theta, device)

    @property
    def first_layer(self) -> DecoderLayer:
        return self._layers[0]

    @property
    def rotary_table(self) -> Tensor:
        """Float32 [max_position, head_dim], see `rotary_table` of the kernels."""
        return self._table

    @property
    def rotary_sections(self) -> tuple[int, int, int]:
        return self.model.rotary.sections

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [T] to embeddings [T, hidden]."""
        return self.model.embed(token_ids)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        attention: PackedAttention,
        plan: SkinnyPlan | None = None,
        batch: BatchPlan | None = None,
    ) -> Tensor:
        """Embeddings [T, hidden], which are overwritten, at positions [3, T] to final hidden states, normed.

        plan: for few tokens, by shape when None. batch: for more; all linears go through cuBLAS when None.
        """
        rotary = PackedRotary(positions, self._table, self.rotary_sections)
        if len(embeddings) <= self.max_skinny_tokens:
            return self._forward_skinny(embeddings, rotary, attention, plan or self.skinny_plan(len(embeddings)))
        return self._forward_wide(embeddings, rotary, attention, batch or BatchPlan())

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Final hidden states [N, hidden] to logits [N, vocab], in the dtype of the weights."""
        lm_head = self.model.lm_head
        weight = self.model.embed_tokens.weight if lm_head is None else lm_head.weight
        return F.linear(hidden, weight) if out is None else torch.mm(hidden, weight.t(), out=out)

    def _forward_wide(
        self, residual: Tensor, rotary: PackedRotary, attention: PackedAttention, plan: BatchPlan
    ) -> Tensor:
        eps, pdl = self.config.rms_norm_eps, self.pdl
        next_norms = [*(layer.input_layernorm.weight for layer in self._layers[1:]), self.model.norm.weight]
        normed = rms_norm(residual, self._layers[0].input_layernorm.weight, eps, pdl=pdl)
        for index, (layer, next_norm) in enumerate(zip(self._layers, next_norms, strict=True)):
            attended = attention.attend_packed(index, self._project(layer.self_attn.qkv_proj, normed, plan.qkv), rotary)
            projected = self._project(layer.self_attn.o_proj, attended, plan.o)
            # What comes out goes where the states were that went in.
            normed = fused_add_rms_norm(
                projected, residual, layer.post_attention_layernorm.weight, eps, out=normed, pdl=pdl
            )
            if plan.gate_up is None:
                activated = silu_and_mul(layer.mlp.gate_up_proj(normed), pdl=pdl)
            else:
                activated = batch_linear(
                    normed, layer.mlp.gate_up_proj.weight, is_gated=True, tiling=plan.gate_up, pdl=pdl
                )
            projected = self._project(layer.mlp.down_proj, activated, plan.down)
            normed = fused_add_rms_norm(projected, residual, next_norm, eps, out=normed, pdl=pdl)
        return normed

    def _project(self, linear: nn.Module, states: Tensor, tiling: BatchTiling | None) -> Tensor:
        """[T, N]; with several splits its parts, float32 [num_splits, T, N]."""
        if tiling is None:
            projected: Tensor = linear(states)
            return projected
        assert isinstance(linear, nn.Linear)
        return batch_linear(states, linear.weight, linear.bias, tiling=tiling, pdl=self.pdl)

    def _forward_skinny(
        self, residual: Tensor, rotary: PackedRotary, attention: PackedAttention, plan: SkinnyPlan
    ) -> Tensor:
        """Five kernels a layer."""
        eps, pdl = self.config.rms_norm_eps, plan.pdl
        for index, layer in enumerate(self._layers):
            qkv_proj, o_proj = layer.self_attn.qkv_proj, layer.self_attn.o_proj
            gate_up_proj, down_proj = layer.mlp.gate_up_proj, layer.mlp.down_proj
            qkv = skinny_linear(
                residual, qkv_proj.weight, qkv_proj.bias, weight_scales=scales_of(qkv_proj),
                norm_weight=layer.input_layernorm.weight, eps=eps, tiling=plan.qkv, pdl=pdl,
            )  # fmt: skip
            upcoming = Upcoming(gate_up_proj.weight, plan.upcoming_bytes) if plan.upcoming_bytes else None
            attended = attention.attend_packed(index, qkv, rotary, upcoming)
            skinny_linear(
                attended, o_proj.weight, weight_scales=scales_of(o_proj), residual=residual, out=residual,
                tiling=plan.o, pdl=pdl,
            )  # fmt: skip
            activated = skinny_linear(
                residual, gate_up_proj.weight, weight_scales=scales_of(gate_up_proj),
                norm_weight=layer.post_attention_layernorm.weight, eps=eps, is_gated=True, tiling=plan.gate_up, pdl=pdl,
            )  # fmt: skip
            skinny_linear(
                activated, down_proj.weight, weight_scales=scales_of(down_proj), residual=residual, out=residual,
                tiling=plan.down, pdl=pdl,
            )  # fmt: skip
        return rms_norm(residual, self.model.norm.weight, eps, pdl=pdl)

    def skinny_plan(self, num_tokens: int) -> SkinnyPlan:
        """For one token the quickest measured on an H200, at the hidden sizes 2,048 and 3,584."""
        if num_tokens > 1:
            return SkinnyPlan(pdl=self.pdl)
        # Where there is PDL, there is the instruction that fetches.
        upcoming_bytes = _UPCOMING_BYTES if self.pdl else 0
        if self.config.hidden_size % 2048 != 0:
            gate_up = SkinnyTiling("vector", 1, 512, 2)
            return SkinnyPlan(gate_up=gate_up, upcoming_bytes=upcoming_bytes, pdl=self.pdl)
        two_rows, down = SkinnyTiling("vector", 2, 2048, 4), SkinnyTiling("vector", 4, 1024, 4, 2)
        return SkinnyPlan(two_rows, two_rows, two_rows, down, upcoming_bytes, self.pdl)

    def batch_plan(self, num_tokens: int) -> BatchPlan | None:
        """For a batch of decodes the quickest measured on an H200, at the hidden sizes 2,048 and 3,584; None where all
        linears go through cuBLAS."""
        if not self.pdl:  # where it is, there is the copy engine as well
            return None
        layer = self._layers[0]
        weights = [linear.weight for linear in (layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj)]
        if any(weight.dtype != torch.bfloat16 for weight in weights):
            return None
        plan = _small_batch_plan(num_tokens) if self.config.hidden_size <= 2_048 else _large_batch_plan(num_tokens)
        tilings = zip((plan.o, plan.gate_up, plan.down), weights, (False, True, False), strict=True)
        is_served = all(tiling is None or tiling.serves(weight, is_gated) for tiling, weight, is_gated in tilings)
        return plan if is_served and plan != BatchPlan() else None

    def warm_up(self, num_tokens: int) -> None:
        """Has the kernels of the linears loaded for a step of so many tokens; those of one layer are those of all."""
        layer, dtype, device = self._layers[0], self.dtype, self._table.device
        hidden = torch.zeros((num_tokens, self.config.hidden_size), dtype=dtype, device=device)
        attended = layer.self_attn.qkv_proj(hidden)[:, : layer.self_attn.o_proj.in_features].contiguous()
        layer.self_attn.o_proj(attended)
        layer.mlp.down_proj(silu_and_mul(layer.mlp.gate_up_proj(hidden)))


def _small_batch_plan(num_tokens: int) -> BatchPlan:
    """At a hidden size of 2,048: the fewer the tokens, the less cuBLAS leaves to gain. Above 64 a tile has 128 rows,
    and up to 96 tokens leave too many of them empty."""
    part = BatchTiling(64, 128, num_splits=4)
    if num_tokens <= 16:
        return BatchPlan(o=part)
    if num_tokens <= 40:
        return BatchPlan(o=part, gate_up=BatchTiling(64, 64))
    if num_tokens <= MAX_BATCH_TOKENS // 2:
        return BatchPlan(o=part, gate_up=BatchTiling(32, 64), down=part)
    if 96 < num_tokens <= MAX_BATCH_TOKENS:
        down = BatchTiling(64, 64, num_splits=4, num_stages=6)
        return BatchPlan(o=BatchTiling(16, 128, num_stages=5), gate_up=BatchTiling(128, 64, num_warps=8), down=down)
    return BatchPlan()


def _large_batch_plan(num_tokens: int) -> BatchPlan:
    """At a hidden size of 3,584."""
    if MAX_BATCH_TOKENS // 4 < num_tokens <= MAX_BATCH_TOKENS // 2:
        return BatchPlan(gate_up=BatchTiling(64, 64, num_stages=3))
    return BatchPlan()


def scales_of(linear: nn.Module) -> Tensor | None:
    """One scale for each row of a quantized weight."""
    scales = getattr(linear, "weight_scale", None)
    return None if scales is None else scales.view(-1)
