"""DispatchCounts: what the dispatcher is doing, and how often it had to help itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DispatchCounts:
    """num_waiting: requests that wait for room in the stages. num_open_circuits: actors that get no new work because
    they failed. The others count since the start."""

    num_waiting: int = 0
    num_open_circuits: int = 0
    num_circuit_openings: int = 0
    num_hedges: int = 0
