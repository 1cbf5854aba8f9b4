"""A rank reads and holds its part of the language model, and the parts together are the whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.attention import DenseCausalAttention
from triptych.models.qwen2_5_vl.checkpoint import CheckpointTensor
from triptych.models.qwen2_5_vl.config import ModelConfig, TextConfig
from triptych.models.qwen2_5_vl.language import LanguageModel
from triptych.models.qwen2_5_vl.quantization import FP8_DTYPE, FP8_MAX, Fp8Linear
from triptych.models.qwen2_5_vl.rope import full_width
from triptych.models.qwen2_5_vl.sharded import ShardedLanguageModel, num_sharded_parameters
from triptych.models.qwen2_5_vl.sharding import shard_config
from triptych.models.qwen2_5_vl.weights import load_language_model

CPU = torch.device("cpu")
# config.json of Qwen2.5-VL-72B.
TEXT_72B = TextConfig(
    vocab_size=152_064,
    hidden_size=8_192,
    intermediate_size=29_568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(16, 24, 24),
    max_position_embeddings=128_000,
    tie_word_embeddings=False,
)


@dataclass
class OneOfSeveral:
    """Rank `rank`, alone: nothing is summed."""

    rank: int
    size: int

    def all_reduce(self, tensor: Tensor) -> None:
        raise AssertionError("a part alone computes nothing")

    def all_gather(self, tensor: Tensor) -> Tensor:
        raise AssertionError("a part alone computes nothing")

    def min_of(self, number: int) -> int:
        return number


def load_parts(folder: Path, size: int) -> list[ShardedLanguageModel]:
    config = ModelConfig.from_folder(folder)
    parts = [load_language_model(folder, config, torch.float32, CPU, OneOfSeveral(rank, size)) for rank in range(size)]
    assert all(isinstance(part, ShardedLanguageModel) for part in parts)
    return parts  # type: ignore[return-value]


def joined_state(parts: list[ShardedLanguageModel], whole: LanguageModel) -> dict[str, Tensor]:
    """The whole model's parameters, put together again from those of the ranks."""
    states = [part.state_dict() for part in parts]
    joined = {}
    for name, expected in whole.state_dict().items():
        tensors = [state[name] for state in states]
        if ".o_proj." in name or ".down_proj." in name:
            joined[name] = torch.cat(tensors, dim=1)
        elif tensors[0].shape == expected.shape:
            assert all(torch.equal(tensor, tensors[0]) for tensor in tensors), "whole on every rank"
            joined[name] = tensors[0]
        elif ".qkv_proj." in name:
            head_dim, config = whole.config.head_dim, parts[0].config
            heads = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
            pieces = [tensor.split([count * head_dim for count in heads]) for tensor in tensors]
            joined[name] = torch.cat([torch.cat([piece[index] for piece in pieces]) for index in range(3)])
        elif ".gate_up_proj." in name:
            halves = [tensor.chunk(2) for tensor in tensors]
            joined[name] = torch.cat([torch.cat([half[index] for half in halves]) for index in range(2)])
        else:
            assert name == "lm_head.weight"
            joined[name] = torch.cat(tensors)
    return joined


def test_parts_make_up_the_whole(untied_checkpoint: tuple[Path, Any]) -> None:
    folder, _ = untied_checkpoint
    whole = load_language_model(folder, ModelConfig.from_folder(folder), torch.float32, CPU)
    joined = joined_state(load_parts(folder, 2), whole)
    for name, expected in whole.state_dict().items():
        assert torch.equal(joined[name], expected), name


def test_a_tied_head_is_a_view_of_the_embedding(checkpoint: Path) -> None:
    parts = load_parts(checkpoint, 2)
    heads = [part.own_head() for part in parts]
    assert torch.equal(torch.cat(heads), parts[0].embed_tokens.weight)
    assert heads[1].untyped_storage().data_ptr() == parts[1].embed_tokens.weight.untyped_storage().data_ptr()


def test_a_rank_reads_its_share_of_the_file(
    untied_checkpoint: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = untied_checkpoint
    num_read: list[int] = []
    for name in ("read", "read_part"):
        monkeypatch.setattr(CheckpointTensor, name, _counted(getattr(CheckpointTensor, name), num_read))
    config = ModelConfig.from_folder(folder)
    part = load_language_model(folder, config, torch.float32, CPU, OneOfSeveral(1, 2))
    assert sum(num_read) == sum(parameter.numel() for parameter in part.parameters())
    assert sum(num_read) == num_sharded_parameters(config.text, 2)


def _counted(read: Any, num_read: list[int]) -> Any:
    def counted(*arguments: Any) -> Tensor:
        tensor: Tensor = read(*arguments)
        num_read.append(tensor.numel())
        return tensor

    return counted


def test_what_does_not_divide_is_named(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="num_key_value_heads is 2, num_attention_heads is 6") as failure:
        load_parts(checkpoint, 4)
    assert failure.value.field == "tensor_parallel"
    with pytest.raises(ModelError, match="5 equal parts: num_key_value_heads is 8, num_attention_heads is 64"):
        shard_config(TEXT_72B, 5)


def test_rounded_checkpoints_are_cut_with_their_scales(untied_checkpoint: tuple[Path, Any]) -> None:
    """Scales belong to rows: those of a linear that is cut by column are whole on every rank."""
    folder, _ = untied_checkpoint
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.startswith("model.layers") and name.endswith("proj.weight")]:
        scale = tensors[name].abs().amax(-1, keepdim=True) / FP8_MAX
        tensors[f"{name}_scale"] = scale
        tensors[name] = (tensors[name] / scale).to(FP8_DTYPE)
    save_file(tensors, path)
    whole = load_language_model(folder, ModelConfig.from_folder(folder), torch.float32, CPU)
    parts = load_parts(folder, 2)
    for name in ("qkv_proj", "o_proj"):
        linears = [model.layers[0].self_attn.get_submodule(name) for model in (whole, *parts)]
        assert all(isinstance(linear, Fp8Linear) for linear in linears)
    states = torch.randn(3, whole.config.hidden_size)
    attended = torch.randn(3, whole.layers[0].self_attn.o_proj.in_features)
    summed = sum(
        part.layers[0].self_attn.o_proj(own) for part, own in zip(parts, attended.chunk(2, dim=1), strict=True)
    )
    torch.testing.assert_close(summed, whole.layers[0].self_attn.o_proj(attended), rtol=1e-4, atol=1e-4)
    gates = [part.layers[0].mlp.gate_up_proj(states).chunk(2, dim=1)[0] for part in parts]
    expected = whole.layers[0].mlp.gate_up_proj(states).chunk(2, dim=1)[0]
    torch.testing.assert_close(torch.cat(gates, dim=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "gigabytes"), [(1, 145.4), (2, 74.0), (4, 38.2), (8, 20.4)])
def test_72b_on_paper(size: int, gigabytes: float) -> None:
    """Bytes of a rank's weights in bfloat16: at 2 and more ranks they fit a GPU of 141 GB."""
    num_bytes = 2 * num_sharded_parameters(TEXT_72B, size)
    assert num_bytes / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_logits_of_parts_are_those_of_the_whole(checkpoint: Path) -> None:
    """Both ranks in lock step: what one sums or gathers is what both have."""
    whole = load_language_model(checkpoint, ModelConfig.from_folder(checkpoint), torch.float32, CPU)
    token_ids = torch.arange(11)
    positions = token_ids.expand(3, -1)
    hidden = whole(whole.embed(token_ids), positions, DenseCausalAttention([11]))
    parts = load_parts(checkpoint, 2)
    layers = zip(*(part.layers for part in parts), strict=True)
    states = parts[0].embed(token_ids)
    rotary = full_width(*parts[0].rotary.cos_sin(positions))
    for both in layers:
        states = states + sum(
            layer.self_attn(layer.input_layernorm(states), *rotary, DenseCausalAttention([11])) for layer in both
        )
        states = states + sum(layer.mlp(layer.post_attention_layernorm(states)) for layer in both)
    torch.testing.assert_close(parts[0].norm(states), hidden, rtol=1e-4, atol=1e-4)


def test_a_part_of_a_model_without_a_vocabulary_that_divides_is_refused() -> None:
    with pytest.raises(ModelError, match="vocab_size is 152065"):
        shard_config(replace(TEXT_72B, vocab_size=152_065), 2)
