"""Batch policies by name: which of the waiting items go together into the next forward pass.

A policy is a pure function of what waits and of the room there is. It may choose nothing when its first item does not
fit beside the batches that run; it is asked again when one of them has ended.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeVar

from triptych.errors import ConfigurationError

SETTING = "stages.encoder.batching"


class Candidate(Protocol):
    """An item as far as a policy looks at it. Times are on the monotonic clock.

    `num_patches_ahead`: of its own request, of items before it in the prompt, done or not.
    """

    @property
    def num_patches(self) -> int: ...

    @property
    def media_bytes(self) -> int: ...

    @property
    def arrived(self) -> float: ...

    @property
    def num_patches_ahead(self) -> int: ...

    @property
    def deadline(self) -> float: ...


@dataclass(frozen=True)
class BatchRoom:
    """What the next batch may take: `max_patches`, though one item may be larger, and what `fits` in memory now.

    `fits(num_patches, media_bytes)` holds for a batch as a whole. `ageing_s` is for how long after its arrival an item
    of `max_patches` may be overtaken by smaller ones.
    """

    max_patches: int
    ageing_s: float
    fits: Callable[[int, int], bool]


Item = TypeVar("Item", bound=Candidate)


class BatchPolicy(Protocol):
    def __call__(self, waiting: Sequence[Item], room: BatchRoom) -> list[Item]:
        """The next batch, out of `waiting`, which is not empty and in the order in which items were prepared."""
        ...


def shortest_work_first(waiting: Sequence[Item], room: BatchRoom) -> list[Item]:
    """The item that is due first, and those due next as far as they fit.

    An item of n patches is due at `min(arrived + ageing_s * n / max_patches, deadline)`, where n counts those ahead of
    it in its prompt as well: prefill goes on with the first picture of a prompt while the second is encoded. Of
    requests that come together the smallest goes first, and an item is overtaken only by those that arrive before it is
    due: from then on the work ahead of it can but shrink. With W patches ahead of it then, it is begun after at most
    2 W / max_patches + 2 more batches (of two batches in a row the first and the head of the second exceed
    `max_patches` together).
    """
    return _fill(sorted(waiting, key=lambda item: (due_at(item, room), item.num_patches_ahead)), room)


def due_at(item: Candidate, room: BatchRoom) -> float:
    """The formula of `shortest_work_first`, on the monotonic clock."""
    num_patches = item.num_patches_ahead + item.num_patches
    return min(item.arrived + room.ageing_s * num_patches / room.max_patches, item.deadline)


def first_come(waiting: Sequence[Item], room: BatchRoom) -> list[Item]:
    """Items in the order of their arrival, and of their prompts, until the batch is full."""
    return _fill(sorted(waiting, key=lambda item: (item.arrived, item.num_patches_ahead)), room)


BATCH_POLICIES: Mapping[str, BatchPolicy] = MappingProxyType(
    {"shortest_work_first": shortest_work_first, "first_come": first_come}
)


def batch_policy(name: str) -> BatchPolicy:
    """Raises ConfigurationError naming the policies there are."""
    if name not in BATCH_POLICIES:
        raise ConfigurationError(f"{SETTING} is {name!r}, expected one of {', '.join(BATCH_POLICIES)}", field=SETTING)
    return BATCH_POLICIES[name]


def _fill(ordered: Sequence[Item], room: BatchRoom) -> list[Item]:
    """The first item, then every later one that still fits; nothing when the first does not fit into memory."""
    first = ordered[0]
    num_patches, media_bytes = first.num_patches, first.media_bytes
    if not room.fits(num_patches, media_bytes):
        return []
    batch = [first]
    for item in ordered[1:]:
        if num_patches + item.num_patches > room.max_patches:
            continue
        if not room.fits(num_patches + item.num_patches, media_bytes + item.media_bytes):
            continue
        num_patches += item.num_patches
        media_bytes += item.media_bytes
        batch.append(item)
    return batch
