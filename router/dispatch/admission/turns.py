"""AdmissionTurns: requests wait here until the stages have room for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from router.dispatch.admission.fair_order import Capacity, CostClass, FairTags, Waiting, next_turn
from router.dispatch.loads import NO_LOAD, Load
from triptych.errors import DeadlineExceeded
from triptych.rpc.deadline import Deadline


@dataclass(frozen=True)
class Applicant:
    """Who asks for a turn, and what for. tenant: whoever shares fairly with others; "" where there are no tokens."""

    tenant: str
    load: Load
    cost_class: CostClass


@dataclass(frozen=True, eq=False)
class _InLine:
    waiting: Waiting
    share: float
    turn: asyncio.Future[None]


class Turn:
    """The room that one request holds in the stages, as much of it as they hold for it themselves.

    An encoder counts patches until they are encoded, an LLM actor counts prompt tokens until the answer's first token
    of its own; KV tokens are held to the end. waited_s: how long the request waited for its turn.
    """

    def __init__(self, turns: AdmissionTurns, load: Load, waited_s: float) -> None:
        self.waited_s = waited_s
        self._turns = turns
        self._load = load
        self._held = load

    def note_encoded(self, num_patches: int) -> None:
        """These patches are encoded."""
        num_left = max(self._held.num_patches - num_patches, 0)
        self._hold(replace(self._held, num_patches=num_left))

    def note_decoding(self) -> None:
        """The actor that decodes gave tokens: everything before that is done."""
        self._hold(replace(self._held, num_patches=0, num_prompt_tokens=0))

    def begin_again(self) -> None:
        """All of it is to be done once more. Taken without waiting: the request has been let in, others wait longer."""
        self._hold(self._load)

    def end(self) -> None:
        """Nothing is held any more."""
        self._hold(NO_LOAD)

    def _hold(self, load: Load) -> None:
        if load != self._held:
            change, self._held = load - self._held, load
            self._turns.change(change)


class AdmissionTurns:
    """Lives on one event loop. `capacity` is asked anew at every turn, as actors come and go; `wake` when they do."""

    def __init__(
        self,
        capacity: Callable[[], Capacity],
        ageing_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = capacity
        self._ageing_s = ageing_s
        self._clock = clock
        self._tags = FairTags()
        self._line: list[_InLine] = []
        self._in_flight = NO_LOAD

    @property
    def num_waiting(self) -> int:
        return len(self._line)

    def waiting_load(self) -> Load:
        """What those who wait ask for, together."""
        return sum((entry.waiting.load for entry in self._line), NO_LOAD)

    @property
    def in_flight(self) -> Load:
        """What those whose turn came hold together."""
        return self._in_flight

    @asynccontextmanager
    async def turn(self, applicant: Applicant, deadline: Deadline) -> AsyncIterator[Turn]:
        """Waits for room and holds it for the body's duration, less what the turn gives back before.

        Raises DeadlineExceeded when the turn does not come in time. How many may wait is bounded by who comes here.
        """
        began_s = self._clock()
        await self._wait(applicant, deadline)
        turn = Turn(self, applicant.load, self._clock() - began_s)
        try:
            yield turn
        finally:
            turn.end()

    def change(self, load: Load) -> None:
        """A turn holds that much more, or less where it is negative."""
        self._in_flight = self._in_flight + load
        self.wake()

    def wake(self) -> None:
        """Gives turns to all who may have one now."""
        if not self._line:
            return
        capacity, now_s = self._capacity(), self._clock()
        # One that was cancelled this moment is about to leave.
        by_waiting = {entry.waiting: entry for entry in self._line if not entry.turn.done()}
        while (chosen := next_turn(list(by_waiting), self._in_flight, capacity, now_s, self._ageing_s)) is not None:
            entry = by_waiting.pop(chosen)
            self._line.remove(entry)
            self._tags.advance(chosen.finish_tag, entry.share)
            self._in_flight = self._in_flight + chosen.load
            entry.turn.set_result(None)

    async def _wait(self, applicant: Applicant, deadline: Deadline) -> None:
        share = self._capacity().share_of(applicant.load)
        waiting = Waiting(applicant.load, applicant.cost_class, self._clock(), self._tags.tag(applicant.tenant, share))
        entry = _InLine(waiting, share, asyncio.get_running_loop().create_future())
        self._line.append(entry)
        self.wake()
        if entry.turn.done():
            return
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await entry.turn
        except BaseException as error:
            self._leave(entry)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the deadline passed while the request waited for room in the stages") from None
            raise

    def _leave(self, entry: _InLine) -> None:
        """Takes out who gives up, also in the moment after its turn came."""
        if entry in self._line:
            self._line.remove(entry)
        else:
            self._in_flight = self._in_flight - entry.waiting.load
        # Whoever could not go while this one stood at the front.
        self.wake()
