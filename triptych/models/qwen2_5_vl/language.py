"""The language model of Qwen2.5-VL: grouped-query attention with mRoPE, SwiGLU, and no idea of batches or pages."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.models.qwen2_5_vl.attention import Attention
from triptych.models.qwen2_5_vl.config import TextConfig
from triptych.models.qwen2_5_vl.layers import GatedMLP, RMSNorm
from triptych.models.qwen2_5_vl.rope import RotaryTable, apply_rotary, full_width


class LanguageModel(nn.Module):
    """Runs T packed tokens of any number of sequences at once; the attention keeps the sequences apart."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.rotary = RotaryTable(config.head_dim, config.rope_theta, config.mrope_section)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [T] to embeddings [T, hidden]. Rows of placeholder tokens are to be replaced by the tower's."""
        embeddings: Tensor = self.embed_tokens(token_ids)
        return embeddings

    def forward(self, embeddings: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Embeddings [T, hidden] at positions [3, T] int64 to final hidden states [T, hidden], normed."""
        cos, sin = full_width(*self.rotary.cos_sin(positions))
        hidden = embeddings
        for layer in self.layers:
            hidden = layer(hidden, cos, sin, attention)
        output: Tensor = self.norm(hidden)
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states [N, hidden] to logits [N, vocab], float32. Pass only the rows that are sampled."""
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, weight).float()


class DecoderLayer(nn.Module):
    """Norm, self-attention, norm, MLP, each pair with a residual."""

    def __init__(self, config: TextConfig, layer_index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer_index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin, attention)
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class SelfAttention(nn.Module):
    """Query, key and value in one linear, rotation, the attention that the caller brings, output projection."""

    def __init__(self, config: TextConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.head_dim = config.head_dim
        self.head_counts = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.head_counts) * config.head_dim)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        heads: Tensor = self.qkv_proj(hidden).unflatten(-1, (-1, self.head_dim))
        num_heads, num_kv_heads, _ = self.head_counts
        rotated, value = torch.split(heads, [num_heads + num_kv_heads, num_kv_heads], dim=1)
        query, key = torch.split(apply_rotary(rotated, cos, sin), [num_heads, num_kv_heads], dim=1)
        output: Tensor = self.o_proj(attention(self.layer_index, query, key, value).flatten(1))
        return output
