"""KV pages by groups of layers from the fused runner, whose steps are over long after they were launched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if tuple(int(part) for part in np.__version__.split(".")[:2]) >= (2, 4) and not torch.cuda.is_available():
    pytest.skip("Triton's interpreter does not run with numpy 2.4", allow_module_level=True)

from engine_helpers import Model, answer, greedy
from fused_helpers import fused_engine
from kv_helpers import exported_by, prefill_sequence, whole_pages

from llm_service.prompt_buckets import PromptBucket
from llm_service.sequence import Sequence


@pytest.mark.parametrize("buckets", [(), (PromptBucket(0, 64),)], ids=["packed", "graph"])
@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_pages_in_groups(model: Model, num_steps_ahead: int, buckets: tuple[PromptBucket, ...]) -> None:
    case = model.case("one image")
    engine = fused_engine(model, num_steps_ahead, prompt_buckets=buckets)
    sequence = prefill_sequence(engine, case, rows=1, layers=1)
    engine.run([sequence])
    num_outputs = sum(bool(output.kv_parts) for output in engine.outputs)
    # A replayed graph tells nothing of its layers: all parts but the last leave together.
    assert num_outputs == (1 if buckets else 3)
    assert len(exported_by(engine, sequence)) == 3 * len(whole_pages(engine, sequence))
    decode = Sequence("decode", case.prompt, greedy(4), embeddings=None)
    decode.take_over(sequence.token_ids[-1], whole_pages(engine, sequence))
    engine.run([decode])
    assert answer(decode) == case.expected[:4]
