"""LaneLedger: what a consumer has fetched over which lane."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from triptych.v1.admin_pb2 import LaneCounters


@dataclass
class _Lane:
    num_transfers: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    num_failures: int = 0


class LaneLedger:
    """Counts for the lanes `names`, since the start."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lanes = {name: _Lane() for name in names}

    def note_transfer(self, name: str, num_bytes: int, seconds: float) -> None:
        lane = self._lanes[name]
        lane.num_transfers += 1
        lane.num_bytes += num_bytes
        lane.seconds += seconds

    def note_failure(self, name: str) -> None:
        self._lanes[name].num_failures += 1

    def counters(self) -> list[LaneCounters]:
        """One message for each lane."""
        return [
            LaneCounters(
                lane=name,
                num_transfers=lane.num_transfers,
                num_bytes=lane.num_bytes,
                seconds=lane.seconds,
                num_failures=lane.num_failures,
            )
            for name, lane in self._lanes.items()
        ]
