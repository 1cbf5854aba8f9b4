"""ExtentAllocator: which pieces of a slab are taken, wherever the slab lies."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from triptych.errors import Overloaded


@dataclass(frozen=True, order=True)
class Extent:
    """A piece of a slab, in bytes; `length` is a multiple of the alignment."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class ExtentAllocator:
    """Bookkeeping for one thread. `num_bytes` and every extent are multiples of `alignment`.

    `setting` is the one that makes the slab larger; the error of a full slab names it.
    """

    def __init__(self, name: str, num_bytes: int, alignment: int, setting: str) -> None:
        self.num_bytes = round_up(num_bytes, alignment)
        self._name = name
        self._alignment = alignment
        self._setting = setting
        self._free = [Extent(0, self.num_bytes)]
        self._taken: set[Extent] = set()

    @property
    def free_bytes(self) -> int:
        return sum(extent.length for extent in self._free)

    def is_taken(self, extent: Extent) -> bool:
        return extent in self._taken

    def allocate(self, num_bytes: int) -> Extent:
        """First free piece of at least `num_bytes`. Raises Overloaded when there is none."""
        length = round_up(max(num_bytes, 1), self._alignment)
        index = next((i for i, extent in enumerate(self._free) if extent.length >= length), None)
        if index is None:
            raise Overloaded(
                f"slab {self._name}: no {length} bytes in a row free of {self.num_bytes} ({self._setting})",
                field=self._setting,
            )
        hole = self._free[index]
        taken = Extent(hole.offset, length)
        rest = Extent(taken.end, hole.length - length)
        self._free[index : index + 1] = [rest] if rest.length else []
        self._taken.add(taken)
        return taken

    def free(self, extent: Extent) -> None:
        """Give a piece back; it joins free neighbours."""
        assert extent in self._taken, f"{extent} of slab {self._name} is not allocated"
        self._taken.remove(extent)
        index = bisect.bisect(self._free, extent)
        offset, end = extent.offset, extent.end
        if index < len(self._free) and self._free[index].offset == end:
            end = self._free.pop(index).end
        if index > 0 and self._free[index - 1].end == offset:
            index -= 1
            offset = self._free.pop(index).offset
        self._free.insert(index, Extent(offset, end - offset))


def round_up(num_bytes: int, alignment: int) -> int:
    return -(-num_bytes // alignment) * alignment
