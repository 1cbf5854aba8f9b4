"""The actors of one stage in virtual time: they start, work, drain and go; every second of each is counted."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

from benchmarks.scaling.rates import ActorRates

# Does something at a time of the simulation.
Schedule = Callable[[float, Callable[[float], None]], None]


class FlowActor:
    """Works off its queue in order. free_s: when it has done all that it has."""

    def __init__(self, begun_s: float, ready_s: float) -> None:
        self.begun_s = begun_s
        self.ready_s = ready_s
        self.free_s = ready_s


class FlowPool:
    """Encoder or prefill actors. A request goes to the actor that will be free first and stays there."""

    def __init__(self, work_per_s: float, start_s: float, num_actors: int) -> None:
        self._work_per_s = work_per_s
        self._start_s = start_s
        self._actors = [FlowActor(0.0, 0.0) for _ in range(num_actors)]
        self._waiting: deque[tuple[float, Callable[[float, float], None]]] = deque()
        self.actor_seconds = 0.0
        self.arrived = 0.0

    @property
    def wanted(self) -> int:
        return len(self._actors)

    def num_starting(self, now_s: float) -> int:
        return sum(actor.ready_s > now_s for actor in self._actors)

    def waiting_work(self, now_s: float) -> float:
        """Work that is there and not done."""
        queued = sum(max(0.0, actor.free_s - max(now_s, actor.ready_s)) for actor in self._actors) * self._work_per_s
        return queued + sum(work for work, _ in self._waiting)

    def submit(self, now_s: float, work: float, done: Callable[[float, float], None]) -> None:
        """`done(finish_s, begun_s)` is called at once, with times to come; without any actor when there is one."""
        self.arrived += work
        if not self._actors:
            self._waiting.append((work, done))
            return
        self._assign(now_s, now_s, work, done)

    def scale(self, now_s: float, num_actors: int) -> None:
        """New ones begin to start; of those there are the ones with least to do drain."""
        while len(self._actors) < num_actors:
            self._actors.append(FlowActor(now_s, now_s + self._start_s))
        while len(self._actors) > num_actors:
            actor = min(self._actors, key=lambda actor: (actor.ready_s <= now_s, actor.free_s))
            self._actors.remove(actor)
            has_work = actor.free_s > max(now_s, actor.ready_s)
            self.actor_seconds += (actor.free_s if has_work else now_s) - actor.begun_s
        while self._waiting and self._actors:
            work, done = self._waiting.popleft()
            self._assign(now_s, now_s, work, done)

    def close(self, now_s: float) -> None:
        """Counts the actors that are there at the end."""
        self.actor_seconds += sum(max(0.0, now_s - actor.begun_s) for actor in self._actors)

    def _assign(self, now_s: float, arrived_s: float, work: float, done: Callable[[float, float], None]) -> None:
        actor = min(self._actors, key=lambda actor: actor.free_s if actor.free_s > now_s else actor.ready_s)
        actor.free_s = max(now_s, actor.free_s) + work / self._work_per_s
        done(actor.free_s, arrived_s)


class DecodeActor:
    """Streams that share its steps. Progress is counted in tokens that a stream which was always there would have."""

    def __init__(self, begun_s: float, ready_s: float) -> None:
        self.begun_s = begun_s
        self.ready_s = ready_s
        self.progress = 0.0
        self.seen_s = ready_s
        self.streams: list[tuple[float, int, int, Callable[[float], None]]] = []
        self.kv_tokens = 0
        self.version = 0
        self.is_draining = False


class DecodePool:
    """Decode actors. A request goes to the ready actor with the fewest streams that has room; else it waits."""

    def __init__(self, rates: ActorRates, num_actors: int, schedule: Schedule) -> None:
        self._rates = rates
        self._schedule = schedule
        self._actors = [DecodeActor(0.0, 0.0) for _ in range(num_actors)]
        self._waiting: deque[tuple[int, int, Callable[[float], None]]] = deque()
        self._numbers = count()
        self.actor_seconds = 0.0

    @property
    def wanted(self) -> int:
        return len(self._actors)

    def num_starting(self, now_s: float) -> int:
        return sum(actor.ready_s > now_s for actor in self._actors)

    def held(self) -> tuple[int, int]:
        """KV tokens and streams, those that wait included."""
        tokens = sum(actor.kv_tokens for actor in self._actors) + sum(kv for kv, _, _ in self._waiting)
        return tokens, sum(len(actor.streams) for actor in self._actors) + len(self._waiting)

    def submit(self, now_s: float, kv_tokens: int, num_tokens: int, done: Callable[[float], None]) -> None:
        """`done(now_s)` is called when the stream has its `num_tokens` tokens."""
        self._waiting.append((kv_tokens, num_tokens, done))
        self._admit(now_s)

    def scale(self, now_s: float, num_actors: int) -> None:
        while len(self._actors) < num_actors:
            actor = DecodeActor(now_s, now_s + self._rates.start_s)
            self._actors.append(actor)
            self._schedule(actor.ready_s, self._admit)
        while len(self._actors) > num_actors:
            actor = min(self._actors, key=lambda actor: (actor.ready_s <= now_s, len(actor.streams)))
            self._actors.remove(actor)
            actor.is_draining = True
            self._end_when_empty(actor, now_s)

    def close(self, now_s: float) -> None:
        self.actor_seconds += sum(max(0.0, now_s - actor.begun_s) for actor in self._actors)

    def _admit(self, now_s: float) -> None:
        while self._waiting:
            kv_tokens, num_tokens, done = self._waiting[0]
            ready = [
                actor
                for actor in self._actors
                if actor.ready_s <= now_s and actor.kv_tokens + kv_tokens <= self._rates.kv_tokens
            ]
            if not ready:
                return
            self._waiting.popleft()
            actor = min(ready, key=lambda actor: len(actor.streams))
            self._advance(actor, now_s)
            heapq.heappush(actor.streams, (actor.progress + num_tokens, next(self._numbers), kv_tokens, done))
            actor.kv_tokens += kv_tokens
            self._schedule_next(actor)

    def _advance(self, actor: DecodeActor, now_s: float) -> None:
        if actor.streams:
            actor.progress += (now_s - actor.seen_s) / self._rates.step_s(len(actor.streams))
        actor.seen_s = now_s

    def _schedule_next(self, actor: DecodeActor) -> None:
        actor.version += 1
        if not actor.streams:
            return
        version = actor.version
        left = max(0.0, actor.streams[0][0] - actor.progress)
        at_s = actor.seen_s + left * self._rates.step_s(len(actor.streams))
        self._schedule(at_s, lambda now_s: self._finish(actor, version, now_s))

    def _finish(self, actor: DecodeActor, version: int, now_s: float) -> None:
        if version != actor.version:
            return  # Streams came or went since this was scheduled.
        self._advance(actor, now_s)
        end, _, kv_tokens, done = heapq.heappop(actor.streams)
        actor.progress = max(actor.progress, end)  # What rounding left.
        actor.kv_tokens -= kv_tokens
        self._schedule_next(actor)
        done(now_s)
        self._end_when_empty(actor, now_s)
        self._admit(now_s)

    def _end_when_empty(self, actor: DecodeActor, now_s: float) -> None:
        if actor.is_draining and not actor.streams:
            self.actor_seconds += now_s - actor.begun_s
