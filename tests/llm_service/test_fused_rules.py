"""The fused sampler, ahead of the host and through captured steps, follows the same rules as the plain one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from engine_helpers import Model, answer, greedy, new_sequence
from form_helpers import VOCAB_SIZE, text_of, write_tokenizer
from fused_helpers import fused_engine
from test_logit_rules import PENALTIES, expected_answer
from tiny_qwen import EOS

from llm_service.answer_form import AnswerForms
from triptych.constraint import Constraint, Form
from triptych.sampling import SamplingParameters


async def test_rules_hold_a_step_ahead(model: Model, tmp_path: Path) -> None:
    """Penalties are counted on the device, a form waits for its token, and an ordinary request goes on as alone."""
    forms = AnswerForms(str(write_tokenizer(tmp_path)), VOCAB_SIZE, [EOS])
    form = await forms.make(Constraint(Form.REGEX, ("[0-9]{12}",)))
    sampling = greedy(12, logprobs=3, **PENALTIES["all"])
    expected, rows = expected_answer(model, sampling)
    engine = fused_engine(model, num_steps_ahead=1, max_running_requests=4)
    hot = SamplingParameters(40, temperature=3.0, seed=4)
    penalized, mate = new_sequence(model.case("text"), sampling), new_sequence(model.case("one token"), greedy(12))
    sequences = [penalized, mate, new_sequence(model.case("text"), hot, form=form)]
    engine.run(sequences)
    assert answer(penalized) == tuple(expected)[:12]
    assert answer(mate) == model.case("one token").expected[:12]
    assert re.fullmatch("[0-9]{12}", text_of(answer(sequences[2])))
    told = [output.logprob for output in engine.outputs if output.sequence is penalized]
    for row, token, logprob in zip(rows, expected, told, strict=False):
        assert logprob is not None and logprob.token_id == token
        assert logprob.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [entry[0] for entry in logprob.top] == row.topk(3).indices.tolist()
