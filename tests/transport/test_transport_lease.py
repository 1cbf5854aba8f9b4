"""LeaseTable: every lease ends exactly once, whatever happens in whatever order."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from triptych.errors import DeadlineExceeded, InvalidRequest, NotFound, Overloaded, TriptychError, Unavailable
from triptych.transport.lease import Lease, LeaseTable

LEASE_S = 10.0
TENSOR = torch.zeros(4, 8)


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Granted:
    ticket_id: str
    tensor: torch.Tensor
    num_released: int = 0
    pins: list[Lease] = field(default_factory=list)

    def on_release(self) -> None:
        assert not self.pins, "released while it is being read"
        self.num_released += 1


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def table(clock: FakeClock) -> LeaseTable:
    return LeaseTable(LEASE_S, 0.1, clock)


async def test_pinned_leases_survive_expiry_and_release_until_unpin(table: LeaseTable, clock: FakeClock) -> None:
    expired, released = Granted("a", TENSOR), Granted("b", TENSOR)
    for granted in (expired, released):
        table.grant(granted.ticket_id, TENSOR, on_release=granted.on_release)
    one, two, three = await table.pin("a", 1), await table.pin("a", 1), await table.pin("b", 1)
    clock.now_s += 100
    table.sweep()
    table.release(["b"])
    assert (expired.num_released, released.num_released) == (0, 0)
    assert table.counters().pinned_leases == 2
    with pytest.raises(NotFound, match="was released"):
        await table.pin("b", 1)
    table.unpin(three)
    assert released.num_released == 1
    table.unpin(one)
    table.sweep()
    assert expired.num_released == 0
    table.unpin(two)
    table.sweep()
    assert expired.num_released == 1
    counts = table.counters()
    assert (counts.granted, counts.released, counts.expired, counts.held_leases, counts.held_bytes) == (2, 1, 1, 0, 0)


async def test_pending_tickets_that_run_out_vanish_and_their_waiters_are_told(
    table: LeaseTable, clock: FakeClock
) -> None:
    table.expect("a")
    table.expect("long", lease_s=1_000)
    waiter = asyncio.create_task(table.pin("a", 60))
    await asyncio.sleep(0)
    clock.now_s += LEASE_S - 1
    assert table.renew(["a", "x"]) == ["x"]
    clock.now_s += LEASE_S - 1
    table.sweep()
    assert not waiter.done() and table.counters().pending == 2
    clock.now_s += 2
    table.sweep()
    with pytest.raises(NotFound, match=r"ran out .*transport\.lease_s"):
        await waiter
    assert table.counters().pending == 1
    # The producer was only slow: what it grants can still be fetched.
    table.grant("a", TENSOR)
    assert (await table.pin("a", 1)).tensor is TENSOR


async def test_a_held_lease_that_ran_out_answers_at_once_and_is_forgotten_later(
    table: LeaseTable, clock: FakeClock
) -> None:
    table.grant("a", TENSOR)
    clock.now_s += LEASE_S
    assert table.sweep() == 1
    with pytest.raises(NotFound, match="ran out"):
        await table.pin("a", 60)
    clock.now_s += LEASE_S
    table.sweep()
    with pytest.raises(NotFound, match="is unknown here"):
        await table.pin("a", 60)


async def test_waits_end_in_time(table: LeaseTable) -> None:
    with pytest.raises(NotFound, match=r"unknown here, 0\.1 s"):
        await table.pin("a", 60)
    with pytest.raises(DeadlineExceeded, match=r"0\.02 s"):
        await table.pin("a", 0.02)
    table.expect("a")
    with pytest.raises(DeadlineExceeded, match=r"0\.15 s"):
        await table.pin("a", 0.15)
    with pytest.raises(DeadlineExceeded):
        await table.pin("a", 0)
    assert table.counters().pending == 1


async def test_expect_during_the_wait_for_an_unknown_ticket_extends_it(table: LeaseTable) -> None:
    waiter = asyncio.create_task(table.pin("a", 60))
    await asyncio.sleep(0.05)
    table.expect("a")
    await asyncio.sleep(0.1)
    assert not waiter.done()
    table.grant("a", TENSOR)
    lease = await waiter
    table.unpin(lease)


async def test_failures_are_raised_afresh_for_everyone(table: LeaseTable) -> None:
    table.expect("a")
    waiters = [asyncio.create_task(table.pin("a", 60)) for _ in range(2)]
    await asyncio.sleep(0)
    error = Overloaded("full", field="stages", retry_after_s=4)
    table.fail("a", error)
    raised = await asyncio.gather(*waiters, return_exceptions=True)
    with pytest.raises(Overloaded) as later:
        await table.pin("a", 1)
    for one in (*raised, later.value):
        assert isinstance(one, Overloaded) and one is not error
        assert (one.message, one.field, one.retry_after_s) == ("full", "stages", 4)
    granted = Granted("a", TENSOR)
    table.grant("a", TENSOR, on_release=granted.on_release)
    assert granted.num_released == 1


async def test_grants_nobody_wants_go_at_once(table: LeaseTable) -> None:
    late, second = Granted("late", TENSOR), Granted("twice", TENSOR)
    table.release(["late"])
    table.grant("late", TENSOR, on_release=late.on_release)
    table.grant("twice", TENSOR)
    table.grant("twice", TENSOR, on_release=second.on_release)
    assert (late.num_released, second.num_released) == (1, 1)
    assert table.counters().held_leases == 1


@pytest.mark.parametrize("is_early", [True, False])
async def test_a_producer_is_told_that_nobody_wants_what_it_makes(table: LeaseTable, is_early: bool) -> None:
    told: list[str] = []
    if is_early:
        table.release(["a"])
    table.expect("a", on_unwanted=lambda: told.append("a"))
    if not is_early:
        assert not told
        table.release(["a"])
    assert told == ["a"]
    table.release(["a"])
    table.expect("b", on_unwanted=lambda: told.append("b"))
    table.grant("b", TENSOR)
    table.release(["b"])
    assert told == ["a"], "once, and not for what is done"
    assert table.counters().held_leases == 0


async def test_a_cancelled_wait_leaves_no_pin_even_when_the_grant_comes_in_the_same_step(table: LeaseTable) -> None:
    granted = Granted("a", TENSOR)
    table.expect("a")
    waiter = asyncio.create_task(table.pin("a", 60))
    await asyncio.sleep(0)
    table.grant("a", TENSOR, on_release=granted.on_release)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert table.counters().pinned_leases == 0
    table.release(["a"])
    assert granted.num_released == 1


async def test_shared_tensors_are_counted_once(table: LeaseTable) -> None:
    other = torch.zeros(3)
    for ticket_id, tensor in (("a", TENSOR), ("b", TENSOR), ("c", other)):
        table.grant(ticket_id, tensor)
    assert table.counters().held_bytes == TENSOR.nbytes + other.nbytes
    table.release(["a"])
    assert table.counters().held_bytes == TENSOR.nbytes + other.nbytes
    table.release(["b"])
    assert table.counters().held_bytes == other.nbytes
    counters = table.counters().to_proto()
    assert (counters.held_leases, counters.held_bytes, counters.granted_leases) == (1, other.nbytes, 3)


async def test_a_broken_callback_does_not_stop_the_sweep(
    table: LeaseTable, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("pages went missing")

    good = Granted("b", TENSOR)
    table.grant("a", TENSOR, on_release=broken)
    table.grant("b", TENSOR, on_release=good.on_release)
    clock.now_s += LEASE_S
    with caplog.at_level(logging.ERROR):
        table.sweep()
    assert good.num_released == 1 and "pages went missing" in caplog.text
    assert table.counters().held_leases == 0


async def test_close_ends_everything_but_what_is_read(table: LeaseTable) -> None:
    read, unread = Granted("read", TENSOR), Granted("unread", TENSOR)
    for granted in (read, unread):
        table.grant(granted.ticket_id, TENSOR, on_release=granted.on_release)
    table.expect("pending")
    waiters = [asyncio.create_task(table.pin(ticket_id, 60)) for ticket_id in ("pending", "unknown")]
    lease = await table.pin("read", 1)
    await asyncio.sleep(0)
    table.close()
    table.close()
    for result in await asyncio.gather(*waiters, return_exceptions=True):
        assert isinstance(result, Unavailable)
    assert (read.num_released, unread.num_released) == (0, 1)
    assert not await table.wait_empty(0.05)
    table.unpin(lease)
    assert read.num_released == 1 and await table.wait_empty(0)
    with pytest.raises(Unavailable):
        await table.pin("read", 1)
    late = Granted("late", TENSOR)
    table.grant("late", TENSOR, on_release=late.on_release)
    assert late.num_released == 1


async def test_run_sweeps_by_itself() -> None:
    table = LeaseTable(0.04, 0.1)
    table.grant("a", TENSOR)
    sweeping = asyncio.create_task(table.run())
    assert await table.wait_empty(2)
    sweeping.cancel()
    assert table.counters().expired == 1


TICKETS = st.sampled_from(["a", "b", "c"])
TENSORS = [torch.zeros(2, 3), torch.zeros(5), torch.zeros(0, 4)]


class LeaseMachine(RuleBasedStateMachine):
    """Random histories of one table, held against a ledger kept from the outside."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.table = LeaseTable(LEASE_S, 60.0, self.clock)
        self.grants: list[Granted] = []
        self.waiters: list[asyncio.Task[Lease]] = []
        self.is_closed = False

    def step(self) -> None:
        """Let the loop run until nothing moves; take over the pins that came out of it."""

        async def turns() -> None:
            for _ in range(4):
                await asyncio.sleep(0)

        self.runner.run(turns())
        for waiter in [waiter for waiter in self.waiters if waiter.done()]:
            self.waiters.remove(waiter)
            if waiter.cancelled():
                continue
            error = waiter.exception()
            if error is None:
                self.granted_by(waiter.result()).pins.append(waiter.result())
            else:
                assert isinstance(error, TriptychError)

    def granted_by(self, lease: Lease) -> Granted:
        return next(granted for granted in self.grants if granted.on_release == lease.on_release)

    def unread(self, ticket_id: str | None = None) -> list[Granted]:
        return [one for one in self.grants if not one.pins and ticket_id in (None, one.ticket_id)]

    @rule(ticket_id=TICKETS, lease_s=st.sampled_from([None, 3.0]))
    def expect(self, ticket_id: str, lease_s: float | None) -> None:
        self.table.expect(ticket_id, lease_s)
        self.step()

    @rule(ticket_id=TICKETS, tensor=st.sampled_from(TENSORS))
    def grant(self, ticket_id: str, tensor: torch.Tensor) -> None:
        granted = Granted(ticket_id, tensor)
        self.grants.append(granted)
        self.table.grant(ticket_id, tensor, on_release=granted.on_release)
        self.step()

    @rule(ticket_id=TICKETS)
    def fail(self, ticket_id: str) -> None:
        self.table.fail(ticket_id, InvalidRequest("bad picture"))
        self.step()
        assert all(granted.num_released == 1 for granted in self.unread(ticket_id))

    @rule(ticket_ids=st.lists(TICKETS, max_size=3))
    def release(self, ticket_ids: list[str]) -> None:
        self.table.release(ticket_ids)
        self.step()
        for ticket_id in ticket_ids:
            assert all(granted.num_released == 1 for granted in self.unread(ticket_id))

    @rule(ticket_ids=st.lists(TICKETS, max_size=3, unique=True), by_s=st.sampled_from([1.0, LEASE_S - 0.5]))
    def renew_keeps_what_it_knows(self, ticket_ids: list[str], by_s: float) -> None:
        unknown = self.table.renew(ticket_ids)
        kept = [one for one in self.grants if one.num_released == 0 and one.ticket_id in set(ticket_ids) - set(unknown)]
        self.clock.now_s += by_s
        self.table.sweep()
        self.step()
        assert all(granted.num_released == 0 for granted in kept)

    @rule()
    def everything_unread_runs_out(self) -> None:
        self.clock.now_s += LEASE_S + 1
        self.table.sweep()
        self.step()
        assert all(granted.num_released == 1 for granted in self.unread())
        assert self.table.counters().pending == 0

    @rule(ticket_id=TICKETS)
    def pin(self, ticket_id: str) -> None:
        async def start() -> None:
            self.waiters.append(asyncio.create_task(self.table.pin(ticket_id, 60)))

        self.runner.run(start())
        self.step()

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def grant_and_cancel_in_one_step(self, data: st.DataObject) -> None:
        ticket_id = data.draw(TICKETS)
        granted = Granted(ticket_id, TENSORS[0])
        self.grants.append(granted)
        self.table.grant(ticket_id, TENSORS[0], on_release=granted.on_release)
        data.draw(st.sampled_from(self.waiters)).cancel()
        self.step()

    @precondition(lambda self: any(granted.pins for granted in self.grants))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        granted = data.draw(st.sampled_from([granted for granted in self.grants if granted.pins]))
        self.table.unpin(granted.pins.pop())
        self.step()

    @precondition(lambda self: len(self.grants) > 3)
    @rule()
    def close(self) -> None:
        self.is_closed = True
        self.table.close()
        self.step()
        assert not self.waiters and all(granted.num_released == 1 for granted in self.unread())

    @invariant()
    def ledger_is_exact(self) -> None:
        held = [granted for granted in self.grants if granted.num_released == 0]
        counts = self.table.counters()
        assert all(granted.num_released <= 1 for granted in self.grants)
        assert all(granted.num_released == 0 for granted in self.grants if granted.pins)
        assert counts.granted == len(self.grants) == counts.released + counts.expired + counts.held_leases
        assert counts.held_leases == len(held)
        assert counts.held_bytes == sum({id(one.tensor): one.tensor.nbytes for one in held}.values())
        assert counts.pinned_leases == sum(bool(granted.pins) for granted in self.grants)
        assert not (self.is_closed and any(not granted.pins for granted in held))

    def teardown(self) -> None:
        for waiter in self.waiters:
            waiter.cancel()
        self.step()
        for granted in self.grants:
            while granted.pins:
                self.table.unpin(granted.pins.pop())
        for _ in range(2):  # What runs out is remembered for one more lease.
            self.clock.now_s += LEASE_S + 1
            self.table.sweep()
        assert all(granted.num_released == 1 for granted in self.grants)
        assert not self.table._entries, "something is remembered for ever"
        self.runner.close()


LeaseMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_random_histories = LeaseMachine.TestCase


async def test_releases_of_ever_new_tickets_do_not_fill_the_table() -> None:
    table = LeaseTable(lease_s=1_000.0, unknown_ticket_wait_s=1.0)
    for start in range(0, 40_000, 1_000):
        table.release(f"ticket-{index}" for index in range(start, start + 1_000))
    assert len(table._entries) == 16_384
    released: list[str] = []
    table.grant("ticket-39999", torch.zeros(1), on_release=lambda: released.append("late"))
    assert released == ["late"] and table.counters().held_leases == 0
