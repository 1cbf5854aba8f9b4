"""Turns on an event loop: what is held comes back, whoever gives up lets go, in whatever moment."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest

from router.dispatch.admission import AdmissionTurns, Applicant, Capacity, CostClass
from router.dispatch.loads import NO_LOAD, Load
from triptych.errors import DeadlineExceeded
from triptych.rpc.deadline import Deadline


def turns(num_prompt_tokens: int = 100) -> AdmissionTurns:
    return AdmissionTurns(lambda: Capacity(0, num_prompt_tokens, 0), ageing_s=60.0)


def text(tokens: int, tenant: str = "") -> Applicant:
    return Applicant(tenant, Load(num_prompt_tokens=tokens, num_requests=1), CostClass.TEXT)


async def hold(admission: AdmissionTurns, applicant: Applicant, release: asyncio.Event) -> None:
    async with admission.turn(applicant, Deadline.after(30.0)):
        await release.wait()


async def test_who_does_not_fit_waits_until_somebody_leaves() -> None:
    admission, release = turns(), asyncio.Event()
    first = asyncio.create_task(hold(admission, text(80), release))
    second = asyncio.create_task(hold(admission, text(30), asyncio.Event()))
    await asyncio.sleep(0)
    assert (admission.in_flight.num_prompt_tokens, admission.num_waiting) == (80, 1)
    release.set()
    await first
    await asyncio.sleep(0)
    assert (admission.in_flight.num_prompt_tokens, admission.num_waiting) == (30, 0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert admission.in_flight == NO_LOAD


async def test_the_deadline_ends_the_wait_and_frees_the_place_in_line() -> None:
    admission, release = turns(), asyncio.Event()
    first = asyncio.create_task(hold(admission, text(100), release))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded, match="waited for room"):
        async with admission.turn(text(1), Deadline.after(0.01)):
            pass
    assert admission.num_waiting == 0
    release.set()
    await first
    assert admission.in_flight == NO_LOAD


async def test_more_room_lets_the_waiting_in() -> None:
    room = [10]
    admission = AdmissionTurns(lambda: Capacity(0, room[0], 0), ageing_s=60.0)
    tasks = [asyncio.create_task(hold(admission, text(10), asyncio.Event())) for _ in range(3)]
    await asyncio.sleep(0)
    assert admission.num_waiting == 2
    room[0] = 30
    admission.wake()
    assert admission.num_waiting == 0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert admission.in_flight == NO_LOAD


async def test_one_that_gives_up_in_the_moment_of_its_turn_keeps_nothing() -> None:
    admission, release = turns(), asyncio.Event()
    first = asyncio.create_task(hold(admission, text(100), release))
    second = asyncio.create_task(hold(admission, text(100), asyncio.Event()))
    await asyncio.sleep(0)
    release.set()
    await first  # Its leaving gave the second its turn, which that has not noticed yet.
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert (admission.in_flight, admission.num_waiting) == (NO_LOAD, 0)


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_all_is_given_back(seed: int) -> None:
    random, admission = Random(seed), turns()

    async def request() -> None:
        applicant = text(random.randint(1, 120), random.choice("abc"))
        async with admission.turn(applicant, Deadline.after(random.choice((0.002, 30.0)))):
            assert admission.in_flight.num_prompt_tokens <= 120
            await asyncio.sleep(random.random() * 0.003)

    tasks = [asyncio.create_task(request()) for _ in range(100)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.001)
        if random.random() < 0.5:
            random.choice(tasks).cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(o is None or isinstance(o, DeadlineExceeded | asyncio.CancelledError) for o in outcomes)
    assert (admission.in_flight, admission.num_waiting) == (NO_LOAD, 0)


async def test_what_is_done_frees_its_room_and_what_is_begun_again_takes_it_back() -> None:
    admission = AdmissionTurns(lambda: Capacity(100, 100, 200), ageing_s=60.0)
    load = Load(num_patches=60, num_prompt_tokens=80, num_kv_tokens=130, num_requests=1)
    async with admission.turn(Applicant("", load, CostClass.PICTURE), Deadline.after(30.0)) as turn:
        for left in (20, 0, 0):
            turn.note_encoded(40)
            assert admission.in_flight == replace(load, num_patches=left)
        waiting = asyncio.create_task(hold(admission, text(30), asyncio.Event()))
        await asyncio.sleep(0)
        assert admission.num_waiting == 1
        for _ in range(2):
            turn.note_decoding()
            assert admission.in_flight == Load(num_prompt_tokens=30, num_kv_tokens=130, num_requests=2)
        # It has been let in already: nobody else is, until there is room again.
        turn.begin_again()
        assert admission.in_flight == load + Load(num_prompt_tokens=30, num_requests=1)
    assert admission.in_flight == Load(num_prompt_tokens=30, num_requests=1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert admission.in_flight == NO_LOAD
