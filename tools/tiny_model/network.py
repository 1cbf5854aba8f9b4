"""Qwen2.5-VL's forward pass in few operations, for packed training batches. Weights come from `FlatParameters`.

The same function as transformers' `Qwen2_5_VLForConditionalGeneration` (a test compares them); the differences are
fused projections, the patch embedding as one matrix product, packed rows, and no Python loop over segments.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as functional
from torch import Tensor

from tools.tiny_model.attention import SegmentAttention
from tools.tiny_model.shape import IMAGE_MEAN, IMAGE_STD, MAX_PIXELS, PATCH, ModelShape

VISION_ROPE_THETA = 10_000.0


class Network:
    """Vision tower and language model over one packed batch (see `BatchBuilder.pack` for the batch's arrays)."""

    def __init__(
        self, shape: ModelShape, weights: Mapping[str, Tensor], attention: SegmentAttention, device: torch.device
    ) -> None:
        self._shape, self._weights, self._attention = shape, weights, attention
        self._dtype = weights["model.norm.weight"].dtype
        # The processor's (x - 255 mean) / (255 std).
        self._mean = 255.0 * torch.tensor(IMAGE_MEAN, device=device).view(3, 1, 1)
        self._inverse_std = 1.0 / (255.0 * torch.tensor(IMAGE_STD, device=device).view(3, 1, 1))
        self._vision_frequencies = _frequencies(shape.vision_head_dim // 2, VISION_ROPE_THETA, device)
        self._frequencies = _frequencies(shape.head_dim, shape.rope_theta, device)
        self._most_patches = MAX_PIXELS // (PATCH * PATCH)
        self._window_patches = (shape.window // PATCH) ** 2

    def pixel_values(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[patches, 3 * 2 * 14 * 14], normalised and with noise added, in window order."""
        frames = batch["frames"]
        pairs = torch.stack((frames[batch["first"]], frames[batch["second"]]), dim=2).float()
        if self._dtype == torch.bfloat16:  # training on a GPU: the noise costs nothing there
            pairs = pairs + torch.randn_like(pairs) * batch["noise"].view(-1, 1, 1, 1)
            pairs = pairs.clamp_(0.0, 255.0)
        return ((pairs - self._mean) * self._inverse_std).flatten(1).to(self._dtype)

    def encode(self, batch: Mapping[str, Tensor], pixel_values: Tensor) -> Tensor:
        """Vision embeddings [cells, hidden] in the order of the placeholder tokens."""
        shape, weights = self._shape, self._weights
        positions = torch.stack((batch["rows"], batch["columns"]), dim=1).float()
        angles = (positions[:, :, None] * self._vision_frequencies).flatten(1)
        cosine, sine = self._rotation(angles)
        hidden = functional.linear(pixel_values, weights["visual.patch_embed.proj.weight"])
        for index in range(shape.vision_depth):
            full = index in shape.full_attention_blocks
            ends, longest = (
                (batch["frame_ends"], self._most_patches) if full else (batch["window_ends"], self._window_patches)
            )
            block = f"visual.blocks.{index}"
            qkv = self._biased(self._norm(hidden, f"{block}.norm1"), f"{block}.attn.qkv")
            qkv = qkv.view(-1, 3, shape.vision_heads, shape.vision_head_dim)
            rotated = _rotate(qkv[:, :2], cosine, sine)
            attended = self._attention(rotated[:, 0], rotated[:, 1], qkv[:, 2], ends, longest)
            hidden = hidden + self._biased(attended.flatten(1), f"{block}.attn.proj")
            gate, up = self._biased(self._norm(hidden, f"{block}.norm2"), f"{block}.mlp.gate_up").chunk(2, dim=-1)
            hidden = hidden + self._biased(functional.silu(gate) * up, f"{block}.mlp.down_proj")
        merged = self._norm(hidden, "visual.merger.ln_q").view(-1, 4 * shape.vision_hidden)
        merged = functional.gelu(self._biased(merged, "visual.merger.mlp.0"))
        return self._biased(merged, "visual.merger.mlp.2")[batch["cells"]]

    def logits(self, batch: Mapping[str, Tensor], vision: Tensor) -> Tensor:
        """[labels, vocabulary]: the prediction at each position whose next token is an answer's."""
        shape, weights = self._shape, self._weights
        ids, owners = batch["ids"], batch["owners"]
        num_rows, length = ids.shape
        embedding = weights["model.embed_tokens.weight"]
        hidden = functional.embedding(ids, embedding)
        hidden = hidden.view(-1, shape.hidden).index_copy(0, batch["vision_positions"], vision)
        hidden = hidden.view(num_rows, length, shape.hidden)
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril_()
        allowed = (owners[:, :, None] == owners[:, None, :]) & causal
        mask = torch.zeros(allowed.shape, dtype=self._dtype, device=ids.device).masked_fill_(~allowed, float("-inf"))
        cosine, sine = self._rotation(self._text_angles(batch["position_ids"]))
        num_queries = shape.heads
        for index in range(shape.layers):
            layer = f"model.layers.{index}"
            qkv = self._biased(self._norm(hidden, f"{layer}.input_layernorm"), f"{layer}.self_attn.qkv")
            qkv = qkv.view(num_rows, length, num_queries + 2 * shape.key_value_heads, shape.head_dim)
            rotated = _rotate(qkv[:, :, : num_queries + shape.key_value_heads], cosine, sine)
            groups = num_queries // shape.key_value_heads
            keys = _repeat_heads(rotated[:, :, num_queries:], groups)
            values = _repeat_heads(qkv[:, :, num_queries + shape.key_value_heads :], groups)
            attended = functional.scaled_dot_product_attention(
                rotated[:, :, :num_queries].transpose(1, 2),
                keys.transpose(1, 2),
                values.transpose(1, 2),
                attn_mask=mask[:, None],
            )
            attended = attended.transpose(1, 2).flatten(2)
            hidden = hidden + functional.linear(attended, weights[f"{layer}.self_attn.o_proj.weight"])
            normed = self._norm(hidden, f"{layer}.post_attention_layernorm")
            gate, up = functional.linear(normed, weights[f"{layer}.mlp.gate_up.weight"]).chunk(2, dim=-1)
            hidden = hidden + functional.linear(functional.silu(gate) * up, weights[f"{layer}.mlp.down_proj.weight"])
        answers = hidden.view(-1, shape.hidden)[batch["label_positions"]]
        return functional.linear(self._norm(answers, "model.norm"), embedding)

    def _text_angles(self, position_ids: Tensor) -> Tensor:
        """[rows, tokens, head_dim / 2]: the sections turn with time, row and column, in this order."""
        start, pieces = 0, []
        for axis, size in enumerate(self._shape.mrope_section):
            pieces.append(position_ids[axis, ..., None].float() * self._frequencies[start : start + size])
            start += size
        return torch.cat(pieces, dim=-1)

    def _rotation(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        doubled = torch.cat((angles, angles), dim=-1).unsqueeze(-2)
        return doubled.cos().to(self._dtype), doubled.sin().to(self._dtype)

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        return functional.rms_norm(hidden, hidden.shape[-1:], self._weights[f"{name}.weight"], self._shape.eps)

    def _biased(self, hidden: Tensor, name: str) -> Tensor:
        return functional.linear(hidden, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])


def _frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    return theta ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)


def _repeat_heads(tensor: Tensor, times: int) -> Tensor:
    """[rows, tokens, heads, head_dim] with each head `times` times in a row."""
    return tensor.unsqueeze(3).expand(-1, -1, -1, times, -1).flatten(2, 3)


def _rotate(tensor: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding over the last dimension; `cosine` and `sine` broadcast over heads, queries and keys."""
    while cosine.dim() < tensor.dim():
        cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    first, second = tensor.chunk(2, dim=-1)
    return torch.addcmul(tensor * cosine, torch.cat((-second, first), dim=-1), sine)
