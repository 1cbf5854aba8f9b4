"""Answers held to a form: they have it, end where it ends, and disturb nobody."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import MakeEngine, Model, answer, greedy, new_sequence
from form_helpers import TOKENS, VOCAB_SIZE, text_of, write_tokenizer
from numpy.typing import NDArray
from tiny_qwen import EOS

from llm_service.answer_form import AnswerForm, AnswerForms, without
from llm_service.prompt import Prompt
from llm_service.sequence import FinishReason, Sequence
from triptych.config import BUILT_IN_MODEL
from triptych.constraint import Constraint, Form
from triptych.errors import InvalidRequest
from triptych.sampling import SamplingParameters


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def forms(tokenizer_folder: Path) -> AnswerForms:
    return AnswerForms(str(tokenizer_folder), VOCAB_SIZE, [EOS])


def regex(pattern: str) -> Constraint:
    return Constraint(Form.REGEX, (pattern,))


def sampled(max_tokens: int = 60, seed: int = 0, **values: object) -> SamplingParameters:
    return SamplingParameters(max_tokens, temperature=3.0, seed=seed, **values)  # type: ignore[arg-type]


def formed(model: Model, sampling: SamplingParameters, form: AnswerForm) -> Sequence:
    return new_sequence(model.case("text"), sampling, form=form.fork())


def allowed_tokens(form: AnswerForm) -> NDArray[np.int64]:
    return np.unpackbits(form.mask().view(np.uint8), bitorder="little").nonzero()[0]


def many_alternatives() -> str:
    schemas = [
        {"type": "object", "properties": {f"p{number}{index}": {"type": "string"} for number in range(20)}}
        for index in range(100)
    ]
    return json.dumps({"anyOf": [schema | {"additionalProperties": False} for schema in schemas]})


@pytest.mark.parametrize("pattern", ["[0-9]{3}-(foo|bar)", "(ab|12){2,6}", "[a-z ]{10,20}!", "x{1,9}[yz]"])
async def test_answers_match(model: Model, make_engine: MakeEngine, forms: AnswerForms, pattern: str) -> None:
    form, engine = await forms.make(regex(pattern)), make_engine()
    sequences = [formed(model, sampled(200, seed), form) for seed in range(6)]
    engine.run(sequences)
    for sequence in sequences:
        assert engine.last_output(sequence).finish_reason is FinishReason.STOP
        assert re.fullmatch(pattern, text_of(answer(sequence)))
    assert len({answer(sequence) for sequence in sequences}) > 1


async def test_mates_are_undisturbed(model: Model, make_engine: MakeEngine, forms: AnswerForms) -> None:
    form, engine = await forms.make(regex("[0-9]{40}")), make_engine(max_step_tokens=24)
    mates = [new_sequence(model.case(name)) for name in ("text", "one image", "video")]
    sequences = [formed(model, sampled(seed=seed), form) for seed in range(2)]
    engine.run([mates[0], sequences[0], mates[1], sequences[1], mates[2]])
    assert [answer(mate) for mate in mates] == [model.case(n).expected for n in ("text", "one image", "video")]
    for seed, sequence in enumerate(sequences):
        assert re.fullmatch("[0-9]{40}", text_of(answer(sequence)))
        alone = formed(model, sampled(seed=seed), form)
        make_engine().run([alone])
        assert answer(alone) == answer(sequence)


async def test_preempted_and_resumed(model: Model, make_engine: MakeEngine, forms: AnswerForms) -> None:
    constraint = regex("[0-9]{30}(foo|bar)")
    form = await forms.make(constraint)
    whole = formed(model, sampled(frequency_penalty=0.5), form)
    make_engine().run([whole])
    tight, sequences = make_engine(num_pages=12), []
    sequences = [formed(model, sampled(frequency_penalty=0.5), form) for _ in range(3)]
    tight.run(sequences)
    assert tight.scheduler.num_preemptions > 0
    assert [answer(sequence) for sequence in sequences] == [answer(whole)] * 3
    for num_generated in (1, 9):
        so_far = answer(whole)[:num_generated]
        prompt = Prompt.build((*whole.prompt.token_ids, *so_far), (), model.config, num_generated)
        sampling = sampled(60 - num_generated, frequency_penalty=0.5)
        resumed = Sequence("request", prompt, sampling, form=await forms.make(constraint, so_far))
        make_engine().run([resumed])
        assert answer(resumed) == answer(whole)[num_generated:]


async def test_ends_of_all_kinds(model: Model, make_engine: MakeEngine, forms: AnswerForms) -> None:
    async def run(pattern: str, **values: object) -> tuple[str, int, FinishReason | None]:
        sequence = formed(model, sampled(**({"max_tokens": 30} | values)), await forms.make(regex(pattern)))
        engine = make_engine()
        engine.run([sequence])
        return text_of(answer(sequence)), len(answer(sequence)), engine.last_output(sequence).finish_reason

    # Cut off by max_tokens: the beginning of an answer of that form.
    text, _, reason = await run("[0-9]{50}", max_tokens=10, logit_bias=((TOKENS.index("12"), -100.0),))
    assert re.fullmatch("[0-9]{10,20}", text) and reason is FinishReason.LENGTH
    # Where the form allows more, min_tokens keeps it going; ignore_eos as long as there is anything.
    _, num_tokens, reason = await run("[a-z]+", min_tokens=20, logit_bias=((EOS, 100.0),))
    assert num_tokens == 21 and reason is FinishReason.STOP
    assert (await run("[a-z]+", ignore_eos=True, logit_bias=((EOS, 100.0),)))[1:] == (30, FinishReason.LENGTH)
    # Where it allows nothing more, the answer ends all the same, and without a token for the end.
    for values in ({}, {"min_tokens": 20}, {"ignore_eos": True}):
        assert await run("yes", **values) == ("yes", 3, FinishReason.STOP)
    # A stop token that the form allows ends it early.
    text, _, reason = await run(
        "[a-c]{25}", stop_token_ids=(TOKENS.index("c"),), logit_bias=((TOKENS.index("c"), 50.0),)
    )
    assert text == "c" and reason is FinishReason.STOP


async def test_greedy_follows_the_likeliest_allowed(model: Model, make_engine: MakeEngine, forms: AnswerForms) -> None:
    sequence = new_sequence(model.case("text"), greedy(20), form=await forms.make(regex("[\\x21-\\x7e ]{20,40}")))
    make_engine().run([sequence])
    assert answer(sequence) == tuple(token for token in model.case("text").expected[: len(answer(sequence))]), (
        "nothing of the undisturbed answer was forbidden"
    )


@pytest.mark.parametrize(
    ("constraint", "field"),
    [
        (regex("("), "regex"),
        (regex("(?=a)b"), "regex"),
        (Constraint(Form.JSON_SCHEMA, ("{",)), "json_schema"),
        (Constraint(Form.JSON_SCHEMA, ("[1]",)), "json_schema"),
        (Constraint(Form.JSON_SCHEMA, ('{"type": "objekt"}',)), "json_schema"),
        (Constraint(Form.JSON_SCHEMA, ('{"$ref": "http://example.com/schema"}',)), "json_schema"),
        (Constraint(Form.JSON_SCHEMA, ("false",)), "json_schema"),
    ],
)
async def test_bad_forms_are_told_by_field(forms: AnswerForms, constraint: Constraint, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        await forms.make(constraint)
    assert caught.value.field == f"sampling.constraint.{field}"


@pytest.mark.parametrize("form", [Form.JSON_SCHEMA, Form.REGEX])
async def test_forms_too_intricate_for_a_step_are_refused(form: Form) -> None:
    """With the vocabulary of a real tokenizer, in which a token may go deep into the form."""
    text = many_alternatives() if form is Form.JSON_SCHEMA else "a{100000}{100}"
    with pytest.raises(InvalidRequest, match=form) as caught:
        state = await AnswerForms(BUILT_IN_MODEL, 1_024, [1_004]).make(Constraint(form, (text,)))
        for _ in range(3):
            state.accept(int(allowed_tokens(state)[-1]))
    assert caught.value.field == f"sampling.constraint.{form}"


async def test_tokens_that_are_not_of_the_form_are_refused(forms: AnswerForms) -> None:
    with pytest.raises(InvalidRequest, match="regex"):
        await forms.make(regex("[0-9]+"), [TOKENS.index("a")])


async def test_choices_are_literal(forms: AnswerForms) -> None:
    form = await forms.make(Constraint(Form.CHOICES, ("a.b*", "(c", "a.c")))
    for character in "a.":
        form.accept(TOKENS.index(character))
    assert {TOKENS[token] for token in allowed_tokens(form)} == {"b", "c"}


def test_without_takes_single_tokens_out() -> None:
    mask = np.full(4, -1, np.int32)
    bits = np.unpackbits(without(mask, (0, 31, 32, 95, 127)).view(np.uint8), bitorder="little")
    assert (bits == 0).nonzero()[0].tolist() == [0, 31, 32, 95, 127]
    only = np.array([1 << 5, 0, 0, 0], np.int32)
    assert without(only, (5,)) is only, "something has to be left"
