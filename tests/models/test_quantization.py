"""Linears in FP8: rounded at load, or as a checkpoint has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.attention import DenseCausalAttention
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.language import LanguageModel
from triptych.models.qwen2_5_vl.quantization import FP8_DTYPE, FP8_MAX, Fp8Linear, quantize_language_model
from triptych.models.qwen2_5_vl.weights import load_language_model

CPU = torch.device("cpu")
# Half a step of e4m3, whose values have three bits behind the first.
HALF_STEP = 2.0**-4


def load(folder: Path) -> LanguageModel:
    return load_language_model(folder, ModelConfig.from_folder(folder), torch.float32, CPU)


def logits_of(model: LanguageModel) -> Tensor:
    ids = torch.arange(40, 60)
    positions = torch.arange(20).expand(3, -1)
    return model.logits(model(model.embed(ids), positions, DenseCausalAttention([20])))


def quantized_copy(folder: Path, target: Path, is_per_channel: bool) -> Path:
    """The checkpoint with FP8 linears in the language layers: the layout of compressed-tensors, or with one scale."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    for name in [name for name in tensors if ".layers." in name and name.endswith("_proj.weight")]:
        wide = tensors[name].float()
        scales = (wide.abs().amax(-1, keepdim=True) if is_per_channel else wide.abs().amax()) / FP8_MAX
        tensors[name] = (wide / scales).to(FP8_DTYPE)
        tensors[f"{name}_scale"] = scales.bfloat16().clone() if is_per_channel else scales.clone()
        if not is_per_channel:
            tensors[name.replace(".weight", ".input_scale")] = torch.tensor(0.5)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_every_weight_is_rounded_to_its_nearest(checkpoint: Path) -> None:
    plain, quantized = load(checkpoint), quantize_language_model(load(checkpoint))
    for layer, rounded_layer in zip(plain.layers, quantized.layers, strict=True):
        for linear, rounded in (
            (layer.self_attn.qkv_proj, rounded_layer.self_attn.qkv_proj),
            (layer.mlp.down_proj, rounded_layer.mlp.down_proj),
        ):
            assert isinstance(rounded, Fp8Linear) and rounded.weight.dtype == FP8_DTYPE
            widened = rounded.weight.float() * rounded.weight_scale
            steps = widened.abs().clamp(min=rounded.weight_scale * 2.0**-6)
            assert ((widened - linear.weight).abs() <= HALF_STEP * 1.01 * steps).all()
    assert isinstance(quantized.lm_head or quantized.embed_tokens, torch.nn.Module)
    assert quantized.embed_tokens.weight.dtype == torch.float32
    expected, actual = logits_of(plain), logits_of(quantized)
    assert 1e-5 < (actual - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize("is_per_channel", [True, False])
def test_fp8_checkpoint_is_what_it_was_made_from(checkpoint: Path, tmp_path: Path, is_per_channel: bool) -> None:
    model = load(quantized_copy(checkpoint, tmp_path / "fp8", is_per_channel))
    projection = model.layers[0].self_attn.qkv_proj
    assert isinstance(projection, Fp8Linear) and projection.weight_scale.shape == (projection.out_features, 1)
    assert projection.bias is not None and projection.bias.dtype == torch.float32
    expected = logits_of(load(checkpoint))
    assert (logits_of(model) - expected).norm() / expected.norm() < 0.1
    assert quantize_language_model(model).layers[0].self_attn.qkv_proj is projection


def test_scales_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = quantized_copy(checkpoint, tmp_path / "fp8", is_per_channel=True)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight_scale"))
    save_file(tensors | {name: torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="has 3 values"):
        load(folder)
    save_file(tensors | {f"{name}_inv": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="by block"):
        load(folder)
