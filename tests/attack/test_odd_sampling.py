"""Odd wishes for an answer: a right answer or a refusal that names the field, and nothing left behind either way."""

from __future__ import annotations

import asyncio
import math

import grpc
import pytest
from attack_helpers import Attacker, ask
from harness import COLOCATED, ONE_OF_EACH

from triptych.v1 import common_pb2, inference_pb2

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("attacker", [ONE_OF_EACH, COLOCATED], ids=str, indirect=True),
]

# Of the small model that is shipped.
VOCAB_SIZE, CONTEXT_TOKENS = 1_024, 4_096
# The token of the letter b.
B = 65
Constraint = common_pb2.Constraint
ALL_TOKENS = range(VOCAB_SIZE)
# A list of such objects may hold such objects.
TREE = (
    '{"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["c"], "properties": '
    '{"c": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}}'
)
# An object that has to hold another one, for ever.
ENDLESS = (
    '{"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["c"], "additionalProperties": false, '
    '"properties": {"c": {"$ref": "#/$defs/node"}}}}}'
)


def regex(text: str) -> common_pb2.Constraint:
    return Constraint(regex=text)


def choices(*texts: str) -> common_pb2.Constraint:
    return Constraint(choices=Constraint.Choices(texts=texts))


def schema(text: str) -> common_pb2.Constraint:
    return Constraint(json_schema=text)


@pytest.mark.parametrize(
    ("sampling", "field", "says"),
    [
        ({"logit_bias": {0: math.nan}}, "logit_bias", "[0] is nan, expected a number from -100 to 100"),
        ({"logit_bias": {0: -math.inf}}, "logit_bias", "-inf"),
        ({"logit_bias": {2**32 - 1: 1.0}}, "logit_bias", "4294967295, expected ids below the vocabulary size"),
        ({"repetition_penalty": 1e-300, "temperature": 1.0}, "repetition_penalty", "1e-300, expected a number from"),
        ({"repetition_penalty": math.nan}, "repetition_penalty", "nan"),
        ({"presence_penalty": math.nan}, "presence_penalty", "nan, expected a number from -2 to 2"),
        ({"frequency_penalty": 2.1}, "frequency_penalty", "2.1"),
        ({"constraint": Constraint()}, "constraint", "asks for no form"),
        ({"constraint": regex("")}, "constraint.regex", "empty"),
        ({"constraint": regex("[a&&b]")}, "constraint.regex", "can't be used: there is no text of this form"),
        ({"constraint": regex("(?!)")}, "constraint.regex", "look-around"),
        ({"constraint": regex("(a)\\1")}, "constraint.regex", "backreference"),
        ({"constraint": schema('{"$ref": "#"}')}, "constraint.json_schema", "there is no text of this form"),
        ({"constraint": schema('{"enum": []}')}, "constraint.json_schema", "Unsatisfiable"),
        ({"constraint": schema('{"$ref": "http://127.0.0.1/x"}')}, "constraint.json_schema", "not present"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_can_not_be_is_refused(
    attacker: Attacker, sampling: dict[str, object], field: str, says: str
) -> None:
    outcome = await attacker.refused(ask(**sampling), f"sampling.{field}", says)
    assert "<state>" not in outcome.message
    await attacker.check_aftermath()


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1e-9},
        {"temperature": 2.0, "top_p": 1e-9, "seed": 2**64 - 1},
        {"logit_bias": dict.fromkeys(ALL_TOKENS, -100.0)},
        {"logit_bias": dict.fromkeys(ALL_TOKENS, 100.0), "temperature": 1e-9},
        {"top_k": 2**32 - 1, "temperature": 1e-9},
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_leaves_the_likeliest_token_is_greedy(attacker: Attacker, sampling: dict[str, object]) -> None:
    greedy, outcome = await attacker.generate(ask()), await attacker.generate(ask(**sampling))
    assert outcome.code is grpc.StatusCode.OK, outcome.message
    assert outcome.token_ids == greedy.token_ids
    await attacker.check_aftermath()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"constraint": regex("()")}, ""),
        ({"constraint": regex("x{0}"), "min_tokens": 16}, ""),
        ({"constraint": regex("a?"), "min_tokens": 5}, "a"),
        ({"constraint": regex("^abc$"), "ignore_eos": True}, "abc"),
        ({"constraint": regex("abc"), "logit_bias": dict.fromkeys(ALL_TOKENS, -100.0)}, "abc"),
        # Where the form leaves nothing else, a token that must not come yet does.
        ({"constraint": regex("\0"), "stop_token_ids": ALL_TOKENS[1:], "min_tokens": 2}, "\0"),
        # Text that reads like a special token is text.
        ({"constraint": choices("<|im_end|>", "b"), "logit_bias": {B: -100.0}}, "<|im_end|>"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_a_form_with_one_answer_gives_it(attacker: Attacker, sampling: dict[str, object], expected: str) -> None:
    outcome = await attacker.generate(ask(**sampling))
    assert (outcome.code, outcome.text) == (grpc.StatusCode.OK, expected), outcome.message
    await attacker.check_aftermath()


@pytest.mark.parametrize(
    "sampling",
    [
        {"repetition_penalty": 0.01, "temperature": 1.0, "logprobs": 20},
        {"repetition_penalty": 100.0, "presence_penalty": 2.0, "frequency_penalty": -2.0},
        {"logit_bias": dict.fromkeys(ALL_TOKENS[1_000:], 100.0), "temperature": 2.0},
        {"constraint": schema(TREE), "temperature": 2.0, "seed": 1},
        {"constraint": schema(ENDLESS), "temperature": 2.0, "seed": 1},
        {"constraint": schema('{"type": "array", "minItems": 1000000000}')},
        {"constraint": regex("[a-z]{9}"), "stop_token_ids": ALL_TOKENS, "n": 4, "logprobs": 20},
    ],
    ids=lambda value: str(value)[:50],
)
async def test_extremes_are_answered(attacker: Attacker, sampling: dict[str, object]) -> None:
    outcome = await attacker.generate(ask(**sampling))
    assert outcome.code is grpc.StatusCode.OK, outcome.message
    assert outcome.token_ids
    await attacker.check_aftermath()


async def test_sixteen_answers_of_one_token(attacker: Attacker) -> None:
    request = ask(n=16, max_tokens=1, min_tokens=1, logprobs=20, temperature=2.0, seed=2**64 - 1)
    chunks, summary = await chunks_of(attacker, request)
    assert sorted(chunk.choice_index for chunk in chunks if chunk.token_ids) == list(range(16))
    assert all([entry.token_id for entry in chunk.logprobs] == list(chunk.token_ids) for chunk in chunks)
    assert [choice.completion_tokens for choice in summary.choices] == [1] * 16
    assert summary.usage.completion_tokens == 16
    await attacker.check_aftermath()


async def test_stop_strings_that_cut_tokens(attacker: Attacker) -> None:
    """Every piece of the answer as a stop string: the text ends before it, and there is one entry for each token."""
    greedy = await attacker.generate(ask())
    for first in range(len(greedy.text)):
        for length in (1, 2, 5):
            stop = greedy.text[first : first + length]
            chunks, summary = await chunks_of(attacker, ask(stop=[stop], logprobs=2))
            assert "".join(chunk.text for chunk in chunks) == greedy.text[: greedy.text.index(stop)]
            token_ids = [token for chunk in chunks for token in chunk.token_ids]
            assert tuple(token_ids) == greedy.token_ids[: len(token_ids)]
            assert [entry.token_id for chunk in chunks for entry in chunk.logprobs] == token_ids
            assert summary.finish_reason == common_pb2.FINISH_REASON_STOP
            assert summary.usage.completion_tokens == len(token_ids)
    await attacker.check_aftermath()


async def test_prompts_around_the_end_of_the_context(attacker: Attacker) -> None:
    """One that leaves room for a single token is answered with it; one token more, and the limit is named."""
    _, summary = await chunks_of(attacker, ask(" a" * 8))
    num_other = summary.usage.prompt_tokens - 8
    for num_missing in (3, 1):
        request = ask(" a" * (CONTEXT_TOKENS - num_other - num_missing), ignore_eos=True)
        _, summary = await chunks_of(attacker, request)
        assert summary.usage.prompt_tokens == CONTEXT_TOKENS - num_missing
        assert summary.usage.completion_tokens == num_missing
        assert summary.finish_reason == common_pb2.FINISH_REASON_LENGTH
    for num_over in (0, 1):
        outcome = await attacker.generate(ask(" a" * (CONTEXT_TOKENS - num_other + num_over)))
        assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT, outcome.code
        assert "expected fewer than 4096, the context length" in outcome.message
    await attacker.check_aftermath()


async def test_a_constrained_answer_is_left_after_every_number_of_chunks(attacker: Attacker) -> None:
    request = ask(constraint=regex("([a-z]{2}[0-9]){8}"), n=2, logprobs=1, max_tokens=24, temperature=2.0, seed=5)
    whole, _ = await chunks_of(attacker, request)
    for num_chunks in range(len(whole)):
        call = attacker.stub.Generate(request, timeout=20.0)
        for _ in range(num_chunks):
            await call.read()
        call.cancel()
    again, _ = await chunks_of(attacker, request)
    assert texts_of(again) == texts_of(whole)
    await attacker.check_aftermath()


async def test_many_odd_wishes_at_once(attacker: Attacker) -> None:
    """A request among others answers as it does alone."""
    mate = ask(temperature=1.5, seed=7, ignore_eos=True)
    alone = await attacker.generate(mate)
    odd = [
        ask(n=16, max_tokens=3, logprobs=20, temperature=2.0),
        ask(constraint=regex("[a&&b]")),
        ask(constraint=schema(TREE), temperature=2.0),
        ask(logit_bias=dict.fromkeys(ALL_TOKENS[1_000:], 100.0), min_tokens=16),
        ask(repetition_penalty=0.01, temperature=1e-9, top_p=1e-9),
    ]
    outcomes = await asyncio.gather(*(attacker.generate(request) for request in (mate, *odd, mate)))
    assert outcomes[0].token_ids == outcomes[-1].token_ids == alone.token_ids
    await attacker.check_aftermath()


async def chunks_of(
    attacker: Attacker, request: inference_pb2.GenerateRequest
) -> tuple[list[inference_pb2.TokenChunk], inference_pb2.GenerateSummary]:
    responses = [response async for response in attacker.stub.Generate(request, timeout=20.0)]
    return [response.chunk for response in responses if response.HasField("chunk")], responses[-1].summary


def texts_of(chunks: list[inference_pb2.TokenChunk]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        texts[chunk.choice_index] = texts.get(chunk.choice_index, "") + chunk.text
    return texts
