"""Fused kernels on several ranks, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if tuple(int(part) for part in np.__version__.split(".")[:2]) >= (2, 4) and not torch.cuda.is_available():
    pytest.skip("Triton's interpreter does not run with numpy 2.4", allow_module_level=True)

import fused_helpers  # noqa: F401  (chooses the interpreter before any kernel is imported)
from engine_helpers import Model, answer, greedy, make_model, new_sequence
from parallel_helpers import ParallelEngine

from llm_service.parallel.fused_runner import ShardedFusedRunner
from llm_service.parallel.runner import ParallelRunner

NUM_TOKENS = 3


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("fused") / "model", hidden_size=64, num_heads=8, num_kv_heads=4)


def test_tokens_are_those_of_transformers(wide_model: Model) -> None:
    """Decodes, chunks and prompts in one step. In processes: the interpreter serves but one thread of each."""
    section = {"num_pages": 50, "max_context_tokens": 64, "max_running_requests": 2, "max_step_tokens": 64}
    engine = ParallelEngine(
        wide_model.folder, 2, in_processes=True, attention="triton", mixed_prefill_tokens=5, **section
    )
    assert isinstance(engine.engine.runner, ParallelRunner)
    assert isinstance(engine.engine.runner._local, ShardedFusedRunner)
    first = new_sequence(wide_model.case("one token"), greedy(NUM_TOKENS, min_tokens=2))
    second = new_sequence(wide_model.case("one image"), greedy(NUM_TOKENS))
    engine.engine.add(first)
    engine.step()
    engine.run([second])
    engine.close()
    assert answer(first) == wide_model.case("one token").expected[:NUM_TOKENS]
    assert answer(second) == wide_model.case("one image").expected[:NUM_TOKENS]
