"""Choosing by measurement: what helps is kept, what fails is not tried again, and noise decides nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.model_folders import write_model_folder
from llm_service.step_choice import StepChoice, moves_of_many, moves_of_one, nearest, quickest
from triptych.kernels.decode_attention import choose_plan
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.fused import FusedLanguageModel, SkinnyPlan
from triptych.models.qwen2_5_vl.language import LanguageModel

BASE = StepChoice(choose_plan(1, 2, 32_768), SkinnyPlan(pdl=True), pdl=True)


def test_moves_that_help_are_kept_together() -> None:
    def time_ms(choice: StepChoice) -> float:
        assert choice.skinny is not None
        if choice.skinny.upcoming_bytes > 8 << 20:
            raise RuntimeError("no such instruction")
        slower = 0.5 if not choice.pdl else 0.0
        return 2.0 + slower - 0.1 * (choice.skinny.down is not None) - 0.2 * (choice.skinny.qkv is not None)

    best = quickest(BASE, moves_of_one(), time_ms, limit_s=10.0)
    assert best.skinny is not None and best.skinny.down is not None and best.skinny.qkv is not None
    assert best.pdl and best.skinny.pdl and best.skinny.upcoming_bytes == 0
    assert best.skinny.gate_up is None and best.attention == BASE.attention


def test_noise_and_a_time_limit_leave_the_base() -> None:
    times = iter([2.0, *[1.995] * 50])
    assert quickest(BASE, moves_of_many(), lambda choice: next(times), limit_s=10.0) == BASE
    assert quickest(BASE, moves_of_one(), lambda choice: 1.0 if choice == BASE else 0.1, limit_s=-1.0) == BASE


def test_batches_follow_the_next_larger_one() -> None:
    tuned = {1: BASE, 64: BASE, 128: BASE}
    assert [nearest(batch, tuned) for batch in (1, 2, 64, 72, 256)] == [1, 64, 64, 128, None]
    assert nearest(4, {}) is None


def fused_model(name: str, folder: Path, pdl: bool = True) -> FusedLanguageModel:
    """One layer of true shape without memory behind it."""
    config = ModelConfig.from_folder(write_model_folder(name, folder, num_layers=1))
    with torch.device("meta"):
        return FusedLanguageModel(LanguageModel(config.text).to(torch.bfloat16), max_position=8, pdl=pdl)


@pytest.mark.parametrize(
    ("name", "with_plan", "without"),
    [("3b", (2, 16, 40, 64, 128), (80, 96, 129, 256)), ("7b", (40, 64), (2, 16, 32, 80, 128))],
)
def test_linears_of_batches_come_where_they_were_quicker(
    name: str, with_plan: tuple[int, ...], without: tuple[int, ...], tmp_path: Path
) -> None:
    model = fused_model(name, tmp_path)
    layer = model.first_layer
    for num_tokens in with_plan:
        plan = model.batch_plan(num_tokens)
        assert plan is not None
        assert plan.o is None or plan.o.serves(layer.self_attn.o_proj.weight)
        assert plan.gate_up is None or plan.gate_up.serves(layer.mlp.gate_up_proj.weight, is_gated=True)
        assert plan.down is None or plan.down.serves(layer.mlp.down_proj.weight)
    assert all(model.batch_plan(num_tokens) is None for num_tokens in without)
    assert fused_model(name, tmp_path, pdl=False).batch_plan(with_plan[0]) is None


def test_weights_that_fall_into_no_tiles_or_are_quantized_go_through_cublas(tmp_path: Path) -> None:
    model = fused_model("3b", tmp_path)
    mlp = model.first_layer.mlp
    mlp.gate_up_proj = torch.nn.Linear(2_048, 2 * 11_000, bias=False, device="meta", dtype=torch.bfloat16)
    assert model.batch_plan(64) is None and model.batch_plan(8) is not None
    mlp.gate_up_proj.to(torch.float8_e4m3fn)
    assert model.batch_plan(8) is None
