"""A running actor changes its role: what runs goes on, what comes is of the new role, and every token is the same."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from engine_helpers import CASES, Model
from service_helpers import (
    TIMEOUT_S,
    Cluster,
    RunningActor,
    decode_request,
    error_of,
    make_config,
    sampling,
    wait_for_tokens,
)

from llm_service.role import Role
from llm_service.role_gate import RoleGate, Work
from triptych.config import DeploymentConfig
from triptych.errors import FailedPrecondition, InvalidRequest, Unavailable
from triptych.v1 import admin_pb2, common_pb2, language_pb2

STAGES = {role: role.stage for role in Role}


async def set_role(running: RunningActor, role: Role, drain_s: float = 30.0) -> admin_pb2.SetRoleResponse:
    request = admin_pb2.SetRoleRequest(stage=role.stage, drain_s=drain_s)
    response: admin_pb2.SetRoleResponse = await running.admin.SetRole(request, timeout=TIMEOUT_S)
    assert response.info.stage == role.stage == (await running.ask()).stage
    return response


def without_grace(model: Model, **section: Any) -> DeploymentConfig:
    config = make_config(model, **section)
    return config.model_copy(update={"control": config.control.model_copy(update={"role_grace_s": 0.0})})


async def test_one_actor_in_three_roles_with_requests_running(model: Model, cluster: Cluster) -> None:
    """Whatever began in a role ends as if nothing had happened; every answer equals the undisturbed one."""
    turning = await cluster.actor("prefill_decode", without_grace(model))
    prefiller, decoder = await cluster.actor("prefill"), await cluster.actor("decode")
    streams = {
        turning.info.actor_id: await cluster.router(turning),
        decoder.info.actor_id: await cluster.router(decoder),
    }
    answers: list[asyncio.Task[tuple[int, ...]]] = []

    async def both(name: str, request_id: str) -> tuple[int, ...]:
        request = decode_request(cluster, model.case(name), request_id)
        await turning.language.Decode(request, timeout=TIMEOUT_S)
        return tuple(await streams[turning.info.actor_id].answer(request_id))

    async def split(name: str, request_id: str, first: RunningActor, second: RunningActor) -> tuple[int, ...]:
        case = model.case(name)
        prompt, ticket = cluster.prompt(case), cluster.kv_ticket(first, case.prompt.num_tokens)
        decode = decode_request(cluster, case, request_id, prompt=prompt, kv_ticket=ticket)
        prefill = language_pb2.PrefillRequest(
            request_id=request_id, prompt=prompt, sampling=sampling(), kv_ticket=ticket
        )
        answer, _ = await asyncio.gather(
            first.language.Prefill(prefill, timeout=TIMEOUT_S), second.language.Decode(decode, timeout=TIMEOUT_S)
        )
        return (answer.first_token_id, *await streams[second.info.actor_id].answer(request_id))

    async def wait_for_all(kind: str) -> None:
        """Their calls have arrived, and each has a token."""
        for index in range(len(CASES)):
            await wait_for_tokens(streams[turning.info.actor_id].tokens, f"{kind}-{index}")

    for number in range(2):
        names = list(enumerate(CASES))
        answers += [asyncio.create_task(both(name, f"both{number}-{index}")) for index, name in names]
        await wait_for_all(f"both{number}")
        await set_role(turning, Role.DECODE)
        answers += [
            asyncio.create_task(split(name, f"to{number}-{index}", prefiller, turning)) for index, name in names
        ]
        await wait_for_all(f"to{number}")
        await set_role(turning, Role.PREFILL)
        answers += [
            asyncio.create_task(split(name, f"from{number}-{index}", turning, decoder)) for index, name in names
        ]
        await asyncio.sleep(0.02)
        await set_role(turning, Role.PREFILL_DECODE)
    for name, answer in zip(list(CASES) * 6, await asyncio.gather(*answers), strict=True):
        assert answer == model.case(name).expected
    for running in (turning, prefiller, decoder):
        info = await running.wait_released()
        assert info.leases.pending_tickets == 0


async def test_what_an_old_role_would_take_is_refused_as_by_one_that_drains(model: Model, cluster: Cluster) -> None:
    """So routers try another; of a role that it never had it says so."""
    running = await cluster.actor("decode", without_grace(model))
    case = model.case(next(iter(CASES)))
    whole = decode_request(cluster, case, "whole")
    assert isinstance(await error_of(running.language.Decode(whole, timeout=TIMEOUT_S)), FailedPrecondition)
    await set_role(running, Role.PREFILL)
    ticket = cluster.kv_ticket(running, case.prompt.num_tokens)
    with_ticket = decode_request(cluster, case, "late", kv_ticket=ticket)
    error = await error_of(running.language.Decode(with_ticket, timeout=TIMEOUT_S))
    assert isinstance(error, Unavailable) and "role prefill" in error.message
    assert isinstance(await error_of(running.language.Decode(whole, timeout=TIMEOUT_S)), FailedPrecondition)
    await running.wait_released()


async def test_what_runs_too_long_is_handed_over(model: Model, cluster: Cluster) -> None:
    """At the drain's end the call fails with Unavailable; with the tokens so far another actor gives the rest."""
    running, other = await cluster.actor("prefill_decode"), await cluster.actor("prefill_decode")
    router, other_router = await cluster.router(running), await cluster.router(other)
    case = model.case(next(iter(CASES)))
    request = decode_request(cluster, case, "long", sampling=sampling(10_000))
    call = running.language.Decode(request, timeout=TIMEOUT_S)
    await wait_for_tokens(router.tokens, "long")
    assert (await set_role(running, Role.DECODE, drain_s=0.0)).remaining_requests == 1
    assert isinstance(await error_of(call), Unavailable)
    await running.wait_released()
    so_far = tuple(router.tokens["long"])[:32]
    prompt = cluster.prompt(case)
    prompt.token_ids.extend(so_far)
    prompt.num_generated_tokens = len(so_far)
    rest = decode_request(cluster, case, "rest", prompt=prompt, sampling=sampling(64 - len(so_far)))
    await other.language.Decode(rest, timeout=TIMEOUT_S)
    assert (*so_far, *await other_router.answer("rest")) == case.expected


async def test_budgets_are_those_of_the_new_stage_within_what_was_built(model: Model, cluster: Cluster) -> None:
    values = make_config(model).model_dump()
    values["stages"]["prefill"] |= {"max_step_tokens": 64, "max_running_requests": 500, "max_waiting_tokens": 100}
    running = await cluster.actor("decode", DeploymentConfig.model_validate(values))
    await set_role(running, Role.PREFILL)
    stage, _ = running.actor._running()
    engine = stage._engine
    await asyncio.wrap_future(engine.call(lambda: None))
    section = engine.scheduler.section
    assert (section.max_step_tokens, section.max_running_requests) == (64, 64)
    assert stage._admission.max_waiting_tokens == 100


async def test_roles_that_can_not_be(model: Model, cluster: Cluster) -> None:
    values = make_config(model).model_dump()
    values["stages"]["prefill_decode"]["page_size"] = 16
    running = await cluster.actor("decode", DeploymentConfig.model_validate(values))
    for stage, drain_s, expected in (
        (common_pb2.STAGE_ENCODER, 1.0, InvalidRequest),
        (common_pb2.STAGE_UNSPECIFIED, 1.0, InvalidRequest),
        (common_pb2.STAGE_PREFILL, -1.0, InvalidRequest),
        (common_pb2.STAGE_PREFILL, math.nan, InvalidRequest),
        (common_pb2.STAGE_PREFILL_DECODE, 1.0, FailedPrecondition),
    ):
        call = running.admin.SetRole(admin_pb2.SetRoleRequest(stage=stage, drain_s=drain_s), timeout=TIMEOUT_S)
        assert type(await error_of(call)) is expected
    assert (await running.ask()).stage == common_pb2.STAGE_DECODE


def test_a_gate_takes_late_work_for_a_while() -> None:
    now_s = 0.0
    gate = RoleGate(Role.PREFILL_DECODE, grace_s=1.0, clock=lambda: now_s)
    gate.switch(Role.DECODE)
    with gate.hold("late", Work.PREFILL_DECODE), gate.hold("next", Work.DECODE):
        assert gate.misplaced() == ["late"]
    assert gate.misplaced() == []
    now_s = 1.0
    for work in (Work.PREFILL, Work.PREFILL_DECODE):
        try:
            gate.check(work)
        except Unavailable:
            continue
        raise AssertionError(work)
    gate.switch(Role.PREFILL)
    gate.check(Work.DECODE)
    assert gate.has_streams()
