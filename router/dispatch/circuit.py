"""Actors that fail again and again get no new work for a while, although the controller still lists them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass


@dataclass
class _Circuit:
    num_failures: int = 0
    # How often it opened since the last success: each time it stays open twice as long.
    num_openings: int = 0
    open_until_s: float = 0.0


class CircuitBreaker:
    """Opens for an actor after `max_failures` failures in a row; then one request tries it again after a pause, which
    doubles up to `max_pause_s` with every trial that fails. An actor that died is another matter: it leaves the view.
    """

    def __init__(
        self,
        max_failures: int,
        pause_s: float,
        max_pause_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_failures = max_failures
        self._pause_s = pause_s
        self._max_pause_s = max_pause_s
        self._clock = clock
        self._circuits: dict[str, _Circuit] = {}
        self.num_openings = 0  # since the start

    def open_actors(self) -> set[str]:
        """Those that are to be left alone now."""
        now_s = self._clock()
        return {actor_id for actor_id, circuit in self._circuits.items() if circuit.open_until_s > now_s}

    def note_chosen(self, actor_ids: Iterable[str]) -> None:
        """Work goes there: an actor on trial gets no second request until the first has told how it went."""
        for actor_id in actor_ids:
            circuit = self._circuits.get(actor_id)
            if circuit is not None and circuit.num_openings and circuit.open_until_s <= self._clock():
                circuit.open_until_s = self._clock() + self._pause_of(circuit)

    def note_failure(self, actor_ids: Iterable[str]) -> None:
        for actor_id in actor_ids:
            circuit = self._circuits.setdefault(actor_id, _Circuit())
            circuit.num_failures += 1
            if circuit.num_failures >= self._max_failures:
                circuit.num_openings += 1
                self.num_openings += 1
                circuit.open_until_s = self._clock() + self._pause_of(circuit)

    def note_success(self, actor_ids: Iterable[str]) -> None:
        """All is forgiven."""
        for actor_id in actor_ids:
            self._circuits.pop(actor_id, None)

    def retain(self, actor_ids: Collection[str]) -> None:
        """Forgets all other actors."""
        for actor_id in self._circuits.keys() - actor_ids:
            del self._circuits[actor_id]

    def _pause_of(self, circuit: _Circuit) -> float:
        return min(self._pause_s * 2.0 ** (max(circuit.num_openings, 1) - 1), self._max_pause_s)
