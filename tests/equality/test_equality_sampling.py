"""What a request may ask of its answers, through the whole system: encoder, prefill and decode apart, and colocated."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import pytest
from equality_runs import infos
from harness import COLOCATED, ONE_OF_EACH, InProcessSystem, Topology
from PIL import Image

from router.control.membership import StageName
from triptych.client import json_object, json_schema, one_of, regex
from triptych.errors import InvalidRequest
from triptych.models.qwen2_5_vl.prompt import PromptBuilder
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.sampling import choice_seed

TWO_DECODERS = Topology(encoder=1, prefill=1, decode=2)
# The random weights are sure of themselves; so hot they say anything at all.
HOT: dict[str, Any] = {"temperature": 6.0}
PICTURE = Image.new("RGB", (84, 56), "red")


@pytest.fixture(params=[ONE_OF_EACH, COLOCATED], ids=str)
async def system(random_model_folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[InProcessSystem]:
    async with InProcessSystem(random_model_folder, request.param) as system:
        yield system
        await system.wait_until_nothing_is_held()


async def test_choices_are_single_answers_with_derived_seeds(system: InProcessSystem) -> None:
    sampling = HOT | {"max_tokens": 12, "ignore_eos": True}
    answer = await system.client.ask("tell me", images=[PICTURE], n=4, seed=11, **sampling)
    again = await system.client.ask("tell me", images=[PICTURE], n=4, seed=11, **sampling)
    singles = await asyncio.gather(
        *(system.client.ask("tell me", images=[PICTURE], seed=choice_seed(11, index), **sampling) for index in range(4))
    )
    assert [choice.token_ids for choice in answer.choices] == [single.token_ids for single in singles]
    assert [choice.text for choice in answer.choices] == [single.text for single in singles]
    assert answer.choices == again.choices
    assert len({choice.token_ids for choice in answer.choices}) == 4
    assert [(choice.index, choice.finish_reason) for choice in answer.choices] == [(n, "length") for n in range(4)]
    assert (answer.text, answer.token_ids) == (answer.choices[0].text, answer.choices[0].token_ids)
    assert answer.usage.completion_tokens == 48
    assert answer.usage.prompt_tokens == singles[0].usage.prompt_tokens


async def test_the_prompt_is_encoded_and_prefilled_once(random_model_folder: Path) -> None:
    for topology in (ONE_OF_EACH, COLOCATED):
        async with InProcessSystem(random_model_folder, topology) as system:
            stage = StageName.PREFILL if topology is ONE_OF_EACH else StageName.PREFILL_DECODE
            answer = await system.client.ask("tell me", images=[PICTURE] * 3, n=4, max_tokens=3, **HOT)
            (info,) = await infos(system, stage)
            num_computed = info.language.prompt_tokens - info.language.cached_prompt_tokens
            # Each further answer computes what stands on the last, unfinished page of the prompt.
            assert num_computed <= answer.usage.prompt_tokens + 3 * 16
            assert info.language.accepted_embeddings == 3
            if topology is ONE_OF_EACH:
                assert num_computed == answer.usage.prompt_tokens
                (encoder,) = await infos(system, StageName.ENCODER)
                assert encoder.encoder.accepted_items == 3
                (decode,) = await infos(system, StageName.DECODE)
                assert decode.leases.granted_leases == 0


async def test_every_choice_ends_by_itself(system: InProcessSystem) -> None:
    """By a stop string, which only the router sees; the others go on."""
    sampling = HOT | {"n": 4, "seed": 3, "max_tokens": 40, "ignore_eos": True}
    whole = await system.client.ask("tell me", **sampling)
    text = whole.choices[2].text
    stop = next(
        text[at : at + 3] for at in range(6, len(text)) if sum(text[at : at + 3] in c.text for c in whole.choices) == 1
    )
    stopped = await system.client.ask("tell me", stop=[stop], **sampling)
    for before, after in zip(whole.choices, stopped.choices, strict=True):
        if before.index == 2:
            assert after.text == text[: text.index(stop)] and after.finish_reason == "stop"
            assert after.token_ids == before.token_ids[: len(after.token_ids)]
        else:
            assert after == before
    every = await system.client.ask("tell me", stop=[" ", "a", "e", "s", "t"], **sampling)
    assert all(choice.finish_reason == "stop" for choice in every.choices)


async def test_chunks_carry_their_choice_and_its_end(system: InProcessSystem) -> None:
    stream = system.client.stream("tell me", n=3, max_tokens=8, logprobs=2, ignore_eos=True, **HOT)
    texts, ends = dict.fromkeys(range(3), ""), []
    async for chunk in stream.chunks():
        texts[chunk.choice_index] += chunk.text
        assert len(chunk.logprobs) == len(chunk.token_ids)
        if chunk.finish_reason:
            ends.append(chunk.choice_index)
    answer = await stream.answer()
    assert texts == {choice.index: choice.text for choice in answer.choices}
    assert sorted(ends) == [0, 1, 2]


async def test_logprobs_name_every_token(system: InProcessSystem) -> None:
    answer = await system.client.ask("tell me", images=[PICTURE], max_tokens=10, logprobs=3, ignore_eos=True)
    again = await system.client.ask(
        "tell me", images=[PICTURE], max_tokens=10, logprobs=0, ignore_eos=True, seed=4, **HOT
    )
    builder = PromptBuilder(BUILT_IN_FOLDER)
    assert b"".join(entry.token for entry in answer.logprobs).decode(errors="replace") == answer.text
    for entry, token in zip(answer.logprobs, answer.token_ids, strict=True):
        assert (entry.token_id, entry.token) == (token, builder.bytes_of(token))
        # Greedy: the chosen one is the likeliest of three.
        assert entry.top[0].token_id == token and entry.top[0].logprob == entry.logprob
        assert len(entry.top) == 3 and entry.top[0].logprob >= entry.top[1].logprob >= entry.top[2].logprob
        assert 0 >= entry.logprob > -20
    assert [entry.token_id for entry in again.logprobs] == list(again.token_ids)
    assert not any(entry.top for entry in again.logprobs)


def random_schema(random: Random, depth: int = 0) -> dict[str, Any]:
    """A schema of an object whose answers can't be endless."""
    kinds = ["string", "integer", "boolean", "enum", "const", "pattern", "null"]
    kind = random.choice(["object", *kinds, "array", "object", "anyOf"] if depth < 2 else kinds) if depth else "object"
    match kind:
        case "object":
            names = random.sample(["a", "bc", "Größe", "x y", 'q"uote', "n_1"], random.randint(1, 3))
            properties = {name: random_schema(random, depth + 1) for name in names}
            required = random.sample(names, random.randint(0, len(names)))
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        case "array":
            return {"type": "array", "items": random_schema(random, depth + 1), "maxItems": random.randint(1, 3)}
        case "anyOf":
            return {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 3}]}
        case "string":
            return {"type": "string", "minLength": random.randint(0, 2), "maxLength": random.randint(3, 9)}
        case "pattern":
            return {"type": "string", "pattern": "^[A-F]{2}-[0-9]{1,4}$"}
        case "integer":
            return {"type": "integer", "minimum": -5, "maximum": random.randint(6, 4_000)}
        case "enum":
            return {"enum": ["red", "dark blue", 7, None]}
        case "const":
            return {"const": {"fixed": [1, 2]}}
        case _:
            return {"type": kind}


async def test_json_of_random_schemas_validates(system: InProcessSystem) -> None:
    """Random weights, at a temperature at which they say anything, with ordinary requests beside them."""
    random = Random(8)
    schemas = [random_schema(random) for _ in range(10)]
    mate = {"max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 2}
    alone = await system.client.ask("beside", **mate)
    beside, *answers = await asyncio.gather(
        system.client.ask("beside", **mate),
        *(
            system.client.ask("json!", response_format=json_schema(schema), max_tokens=1_200, seed=seed, **HOT)
            for seed, schema in enumerate(schemas)
        ),
    )
    assert beside.token_ids == alone.token_ids
    for schema, answer in zip(schemas, answers, strict=True):
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), schema)


async def test_other_forms(system: InProcessSystem) -> None:
    pattern = r"[0-9]{3}-(foo|bär)!"
    answers = await asyncio.gather(
        system.client.ask("x", response_format=regex(pattern), n=4, max_tokens=50, **HOT),
        system.client.ask("x", response_format=one_of("yes", "no", "perhaps (not)"), n=8, max_tokens=50, **HOT),
        system.client.ask("x", response_format=json_object(), max_tokens=30, **HOT),
    )
    assert all(re.fullmatch(pattern, choice.text) for choice in answers[0].choices)
    assert {choice.text for choice in answers[1].choices} <= {"yes", "no", "perhaps (not)"}
    assert len({choice.text for choice in answers[1].choices}) > 1
    assert answers[2].text.lstrip().startswith("{")
    # Cut by a stop string, by max_tokens: the beginning of an answer of the form.
    cut = await system.client.ask("x", response_format=regex("[0-9]{30}"), max_tokens=5, min_tokens=5, **HOT)
    assert re.fullmatch("[0-9]{5,15}", cut.text) and cut.finish_reason == "length"
    stopped = await system.client.ask("x", response_format=regex("[a-f]{300}"), stop=["b"], max_tokens=300, **HOT)
    assert re.fullmatch("[ac-f]*", stopped.text) and stopped.finish_reason == "stop"


async def test_a_dead_decode_actor_changes_nothing(random_model_folder: Path) -> None:
    """Several answers with penalties, biases, log probabilities and a form go on elsewhere as if undisturbed."""
    sampling = HOT | {
        "n": 3,
        "seed": 9,
        "max_tokens": 150,
        "logprobs": 1,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.4,
        "logit_bias": {300: 2.0},
        "response_format": regex("([a-zA-Z ,.]{3}[0-9]){40}"),
    }
    async with InProcessSystem(random_model_folder, TWO_DECODERS) as system:
        undisturbed = await system.client.ask("tell me", images=[PICTURE], **sampling)
        stream = system.client.stream("tell me", images=[PICTURE], **sampling)
        num_chunks = 0
        async for _ in stream.chunks():
            num_chunks += 1
            if num_chunks == 20:
                (busy,) = [a for a in system.ids(StageName.DECODE) if (await system.info(a)).language.running_requests]
                await system.kill(busy)
        answer = await stream.answer()
        assert answer.route.attempts > 1
        for before, after in zip(undisturbed.choices, answer.choices, strict=True):
            assert (after.token_ids, after.text, after.finish_reason) == (before.token_ids, before.text, "stop")
            assert [entry.token_id for entry in after.logprobs] == list(after.token_ids)
            assert [entry.logprob for entry in after.logprobs] == pytest.approx(
                [entry.logprob for entry in before.logprobs], abs=1e-3
            )
        await system.wait_until_nothing_is_held()


async def test_bad_wishes_are_told_by_field(random_model_folder: Path) -> None:
    wishes: list[tuple[str, dict[str, Any]]] = [
        ("n", {"n": 0}),
        ("n", {"n": 17}),
        ("logprobs", {"logprobs": 21}),
        ("constraint.regex", {"response_format": regex("(")}),
        ("constraint.regex", {"response_format": regex("")}),
        ("constraint.regex", {"response_format": regex("a" * 70_000)}),
        ("constraint.json_schema", {"response_format": json_schema('{"type": "objekt"}')}),
        ("constraint.json_schema", {"response_format": json_schema('{"type":"array","items":' * 900)}),
        ("constraint.choices", {"response_format": one_of()}),
        ("logit_bias", {"logit_bias": {99_999: 1.0}}),
    ]
    async with InProcessSystem(random_model_folder, ONE_OF_EACH) as system:
        for field, values in wishes:
            with pytest.raises(InvalidRequest, match=re.escape(f"sampling.{field}")) as caught:
                await system.client.ask("x", max_tokens=3, **values)
            assert caught.value.field == f"sampling.{field}"
        await system.wait_until_nothing_is_held()
