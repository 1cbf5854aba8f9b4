"""KV pages that leave by groups of layers while the forward pass that makes them goes on."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_helpers import CASES, MakeEngine, Model, answer, greedy
from kv_helpers import (
    exported_by,
    in_parts,
    num_transfers,
    prefill_of,
    prefill_sequence,
    until,
    whole_pages,
)
from layer_gate import LayerGate
from service_helpers import (
    TIMEOUT_S,
    Cluster,
    RunningActor,
    decode_request,
    error_of,
    make_config,
    sampling,
)

from llm_service.page_landing import PageLanding
from llm_service.sequence import Sequence
from triptych.config import DeploymentConfig
from triptych.errors import Unavailable
from triptych.transport.parts import parts_of
from triptych.transport.ticket import TensorSpec, Ticket
from triptych.v1 import admin_pb2, language_pb2, tensor_pb2, tensor_pb2_grpc

NUM_LAYERS = 3
LANES = ["grpc", "shm"]


def config_of(model: Model, lanes: tuple[str, ...], **section: object) -> DeploymentConfig:
    config = make_config(model, **section)
    return config.model_copy(update={"transport": config.transport.model_copy(update={"lanes": lanes})})


async def pair(cluster: Cluster, lane: str = "grpc", **section: object) -> list[RunningActor]:
    """Pages go over `lane`; embeddings, whose producer serves nothing else, over grpc."""
    model = cluster.model
    prefiller = await cluster.actor("prefill", config_of(model, (lane, "grpc"), **section))
    return [prefiller, await cluster.actor("decode", config_of(model, (lane,), **section))]


# The engine.


def test_in_one_pass_the_first_layers_of_all_pages_leave_first(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine()
    sequence = prefill_sequence(engine, model.case("text"), rows=2, layers=1)  # 37 tokens, 16 a part
    engine.run([sequence])
    order = [(item.part.first_layer, item.part.first_row) for item in exported_by(engine, sequence)]
    assert order == [(layer, row) for layer in range(NUM_LAYERS) for row in (0, 2, 4)]


def test_parts_are_published_before_the_pass_has_ended(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine()
    sequence = prefill_sequence(engine, model.case("text"), rows=2, layers=2)
    published: list[int] = []
    layers = model.language.layers
    hook = layers[-1].register_forward_pre_hook(
        lambda *arguments: published.append(sum(len(output.kv_parts) for output in engine.outputs))
    )
    try:
        engine.run([sequence])
    finally:
        hook.remove()
    assert published == [3], "the first two layers of all three blocks"


def test_a_copy_that_fails_in_the_middle_is_made_at_the_end(
    model: Model, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = model.case("text")
    engine = make_engine()
    sequence = prefill_sequence(engine, case, rows=2, layers=1)
    hand_over, failures = engine.cache.hand_over_pages, iter([RuntimeError("no memory")] * 2)

    def fail_twice(*arguments: object) -> torch.Tensor:
        for failure in failures:
            raise failure
        return hand_over(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.cache, "hand_over_pages", fail_twice)
    engine.run([sequence])
    decode = Sequence("decode", case.prompt, greedy(), embeddings=None)
    decode.take_over(case.expected[0], whole_pages(engine, sequence))
    engine.run([decode])
    assert answer(decode) == case.expected


def test_a_pass_that_fails_between_two_groups_is_run_again(model: Model, make_engine: MakeEngine) -> None:
    """What left before it failed does not leave again."""
    engine = make_engine()
    first = prefill_sequence(engine, model.case("text"), rows=2, layers=1)
    second = prefill_sequence(engine, model.case("one image"), rows=2, layers=1)
    failures = iter([RuntimeError("once")])

    def fail_once(*arguments: object) -> None:
        for failure in failures:
            raise failure

    hook = model.language.layers[-1].register_forward_pre_hook(fail_once)
    try:
        engine.run([first, second])
    finally:
        hook.remove()
    for sequence in (first, second):
        assert not whole_pages(engine, sequence).isnan().any()
    assert next(failures, None) is None, "the pass has failed"


@pytest.mark.parametrize("layers", [1, 2])
async def test_pages_land_in_any_order(layers: int) -> None:
    spec = TensorSpec(torch.float32, (5, NUM_LAYERS, 2, 4, 1, 2))
    pages = torch.randn(spec.shape)
    ticket = Ticket("t", "p", "127.0.0.1:1", "h", "f", spec.dtype, spec.shape, ("grpc",))
    parts = parts_of(replace(ticket, rows_per_part=2, layers_per_part=layers))
    landing = PageLanding(spec, pages[:1])
    for part in reversed(parts):
        rows = pages[max(part.first_row, 1) : part.end_row, part.layers]
        await landing.put(part, rows)
    assert torch.equal(landing.pages(), pages)


# The actors.


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(("rows", "layers"), [(1, 1), (2, 2), (0, 1)])
@pytest.mark.parametrize("chunk", [8, 1024])
async def test_tokens_are_those_of_one_actor(
    model: Model, cluster: Cluster, lane: str, rows: int, layers: int, chunk: int
) -> None:
    prefiller, decoder = await pair(cluster, lane, prefill_chunk_tokens=chunk)
    router = await cluster.router(decoder)
    requests = [
        decode_request(
            cluster,
            model.case(name),
            name.replace(" ", "-"),
            kv_ticket=in_parts(cluster, prefiller, model.case(name).prompt.num_tokens, rows, layers),
        )
        for name in CASES
    ]
    decodes = [decoder.language.Decode(request, timeout=TIMEOUT_S) for request in requests]
    firsts = await asyncio.gather(
        *(prefiller.language.Prefill(prefill_of(request), timeout=TIMEOUT_S) for request in requests)
    )
    assert {response.kv_lane for response in await asyncio.gather(*decodes)} == {lane}
    for name, first in zip(CASES, firsts, strict=True):
        assert (first.first_token_id, *await router.answer(name.replace(" ", "-"))) == model.case(name).expected
    await prefiller.wait_released()
    await decoder.wait_released()


@pytest.mark.parametrize("lane", LANES)
async def test_the_first_group_arrives_before_the_pass_has_ended(model: Model, cluster: Cluster, lane: str) -> None:
    prefiller, decoder = await pair(cluster, lane)
    router = await cluster.router(decoder)
    gate = LayerGate(prefiller.actor, layer_index=1)
    case = model.case("text")
    ticket = in_parts(cluster, prefiller, case.prompt.num_tokens, rows=2, layers=1)
    request = decode_request(cluster, case, "r", kv_ticket=ticket)
    decode = asyncio.ensure_future(decoder.language.Decode(request, timeout=TIMEOUT_S))
    prefill = asyncio.ensure_future(prefiller.language.Prefill(prefill_of(request), timeout=TIMEOUT_S))

    async def first_layer_has_come() -> bool:
        return await num_transfers(decoder) == 3

    await until(first_layer_has_come)
    assert not prefill.done() and not decode.done() and not router.tokens
    gate.open()
    assert (await prefill).first_token_id == case.expected[0]
    await decode
    assert tuple(await router.answer("r")) == case.expected[1:]
    assert await num_transfers(decoder) == 3 * NUM_LAYERS
    await prefiller.wait_released()
    await decoder.wait_released()


async def test_only_pages_that_the_decode_actor_lacks_travel(model: Model, cluster: Cluster) -> None:
    prefiller, decoder = await pair(cluster)
    router = await cluster.router(decoder)
    case = model.case("text")  # 37 tokens: 4 full pages and one more
    for request_id, num_parts in (("first", 3 * NUM_LAYERS), ("second", 3 * NUM_LAYERS + NUM_LAYERS)):
        ticket = in_parts(cluster, prefiller, case.prompt.num_tokens, rows=2, layers=1)
        request = decode_request(cluster, case, request_id, kv_ticket=ticket)
        decode = decoder.language.Decode(request, timeout=TIMEOUT_S)
        first = await prefiller.language.Prefill(prefill_of(request), timeout=TIMEOUT_S)
        await decode
        assert (first.first_token_id, *await router.answer(request_id)) == case.expected
        assert await num_transfers(decoder) == num_parts
        await prefiller.wait_released()


@pytest.mark.parametrize("how", ["both cancelled", "decode cancelled", "prefill cancelled", "aborted", "released"])
async def test_what_ends_between_two_groups_holds_nothing(model: Model, cluster: Cluster, how: str) -> None:
    prefiller, decoder = await pair(cluster)
    router = await cluster.router(decoder)
    gate = LayerGate(prefiller.actor, layer_index=1)
    case = model.case("text")
    ticket = in_parts(cluster, prefiller, case.prompt.num_tokens, rows=2, layers=1)
    request = decode_request(cluster, case, "r", kv_ticket=ticket)
    decode = decoder.language.Decode(request, timeout=TIMEOUT_S)
    prefill = prefiller.language.Prefill(prefill_of(request), timeout=TIMEOUT_S)

    async def first_layer_has_come() -> bool:
        return await num_transfers(decoder) == 3

    await until(first_layer_has_come)
    if how in ("both cancelled", "decode cancelled"):
        decode.cancel()
    if how in ("both cancelled", "prefill cancelled"):
        prefill.cancel()
    if how == "aborted":
        for running in (prefiller, decoder):
            await running.language.Abort(language_pb2.AbortRequest(request_ids=["r"]))
    if how == "released":
        stub = tensor_pb2_grpc.TensorServiceStub(prefiller.channel)
        await stub.Release(tensor_pb2.ReleaseRequest(ticket_ids=[ticket.ticket_id]))
    if how != "decode cancelled":
        failures = await asyncio.gather(decode, return_exceptions=True)
        assert all(isinstance(failure, BaseException) for failure in failures)
    # While the pass still stands before its second layer.
    await decoder.wait_released()
    gate.open()
    await asyncio.gather(prefill, return_exceptions=True)
    info = await prefiller.wait_released()
    assert info.leases.pending_tickets == 0
    # Neither actor has lost anything by it.
    ticket = in_parts(cluster, prefiller, case.prompt.num_tokens, rows=2, layers=1)
    request = decode_request(cluster, case, "again", kv_ticket=ticket)
    decode = decoder.language.Decode(request, timeout=TIMEOUT_S)
    first = await prefiller.language.Prefill(prefill_of(request), timeout=TIMEOUT_S)
    await decode
    assert (first.first_token_id, *await router.answer("again")) == case.expected


async def test_a_prefill_actor_that_is_killed_between_two_groups(model: Model, cluster: Cluster) -> None:
    _, decoder = await pair(cluster)
    router = await cluster.router(decoder)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("layer_gate.py")),
        config_of(model, ("grpc",)).model_dump_json(),
        "1",
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        info = admin_pb2.ActorInfo.FromString(bytes.fromhex((await process.stdout.readline()).decode()))
        killed = RunningActor(None, info, cluster._channels.get(info.endpoint))  # type: ignore[arg-type]
        case = model.case("text")
        ticket = in_parts(cluster, killed, case.prompt.num_tokens, rows=2, layers=1)
        request = decode_request(cluster, case, "r", kv_ticket=ticket)
        decode = decoder.language.Decode(request, timeout=TIMEOUT_S)
        prefill = killed.language.Prefill(prefill_of(request), timeout=TIMEOUT_S)

        async def first_layer_has_come() -> bool:
            return await num_transfers(decoder) == 3

        await until(first_layer_has_come)
        process.kill()
        for call in (decode, prefill):
            assert isinstance(await error_of(call), Unavailable)
        await decoder.wait_released()
        assert not router.tokens
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_layers_of_pages_under_leases_add_up_to_pages(model: Model, cluster: Cluster) -> None:
    """Nobody decodes: all wait, until the one name that the router knows is released."""
    prefiller, _ = await pair(cluster)
    case = model.case("text")
    ticket = in_parts(cluster, prefiller, case.prompt.num_tokens, rows=2, layers=1)
    request = prefill_of(decode_request(cluster, case, "r", kv_ticket=ticket))
    await prefiller.language.Prefill(request, timeout=TIMEOUT_S)
    info = await prefiller.ask()
    assert info.language.held_pages == 5 and info.leases.held_leases == 3 * NUM_LAYERS + 1
    stub = tensor_pb2_grpc.TensorServiceStub(prefiller.channel)
    await stub.Release(tensor_pb2.ReleaseRequest(ticket_ids=[ticket.ticket_id]))
    await prefiller.wait_released()


async def test_several_answers_from_pages_in_groups(model: Model, cluster: Cluster) -> None:
    prefiller, decoder = await pair(cluster)
    router = await cluster.router(decoder)
    case = model.case("text")
    ticket = in_parts(cluster, prefiller, case.prompt.num_tokens, rows=2, layers=2)
    request = decode_request(cluster, case, "r", kv_ticket=ticket, sampling=sampling(8, n=2))
    decode = decoder.language.Decode(request, timeout=TIMEOUT_S)
    await prefiller.language.Prefill(prefill_of(request), timeout=TIMEOUT_S)
    await decode
    tokens = [
        token
        for message in router.messages
        for output in message.outputs
        if output.choice_index == 1
        for token in output.token_ids
    ]
    assert tuple(tokens) == case.expected[:8]
    await prefiller.wait_released()
    await decoder.wait_released()
