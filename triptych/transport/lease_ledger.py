"""LeaseLedger: how many leases and bytes a LeaseTable holds, and where those went that it held before."""

from __future__ import annotations

from torch import Tensor

from triptych.transport.lease_entry import LeaseCounts


class LeaseLedger:
    """Exact at any time. A tensor that several leases share counts once; the leases that are held keep it alive."""

    def __init__(self) -> None:
        # id(tensor) -> [leases on it, bytes]; unique, since the tensors are alive.
        self._tensors: dict[int, list[int]] = {}
        self._num_held = 0
        self._granted = 0
        self._released = 0
        self._expired = 0

    @property
    def num_held(self) -> int:
        return self._num_held

    def note_refused(self) -> None:
        """A lease that went at once, as nobody wants it any more."""
        self._granted += 1
        self._released += 1

    def note_held(self, tensor: Tensor) -> None:
        self._granted += 1
        self._num_held += 1
        share = self._tensors.setdefault(id(tensor), [0, tensor.nbytes])
        share[0] += 1

    def note_dropped(self, tensor: Tensor, *, is_expired: bool) -> None:
        """One lease on `tensor`, which was held, is held no more."""
        self._num_held -= 1
        self._expired += is_expired
        self._released += not is_expired
        share = self._tensors[id(tensor)]
        share[0] -= 1
        if share[0] == 0:
            del self._tensors[id(tensor)]

    def counts(self, *, pinned_leases: int, pending: int) -> LeaseCounts:
        """With what only the table knows of its tickets."""
        return LeaseCounts(
            held_leases=self._num_held,
            held_bytes=sum(num_bytes for _, num_bytes in self._tensors.values()),
            pinned_leases=pinned_leases,
            pending=pending,
            granted=self._granted,
            released=self._released,
            expired=self._expired,
        )
