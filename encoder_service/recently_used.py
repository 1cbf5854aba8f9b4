"""Tensors by key, bounded in bytes; what was used least recently falls out first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


class RecentlyUsed(Generic[Key]):
    """At most `max_bytes` of tensors (0: none). `size_of` tells what memory a tensor of so many bytes takes."""

    def __init__(self, max_bytes: int, size_of: Callable[[int], int] = lambda num_bytes: num_bytes) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._size_of = size_of
        self._tensors: OrderedDict[Key, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, key: Key) -> bool:
        return key in self._tensors

    def get(self, key: Key) -> Tensor | None:
        """The tensor, now the most recently used one, or None."""
        tensor = self._tensors.get(key)
        if tensor is not None:
            self._tensors.move_to_end(key)
        return tensor

    def can_hold(self, tensor: Tensor) -> bool:
        """Whether it would fit alone."""
        return self._size_of(tensor.nbytes) <= self.max_bytes

    def put(self, key: Key, tensor: Tensor) -> list[tuple[Key, Tensor]]:
        """Keeps `tensor` as the most recently used one; answers what fell out, `tensor` itself when it can't fit."""
        self.remove(key)
        if not self.can_hold(tensor):
            return [(key, tensor)]
        self._tensors[key] = tensor
        self.num_bytes += self._size_of(tensor.nbytes)
        fallen = []
        while self.num_bytes > self.max_bytes:
            oldest = next(iter(self._tensors))
            fallen.append((oldest, self._tensors[oldest]))
            self.remove(oldest)
        return fallen

    def remove(self, key: Key) -> None:
        tensor = self._tensors.pop(key, None)
        if tensor is not None:
            self.num_bytes -= self._size_of(tensor.nbytes)

    def clear(self) -> None:
        self._tensors.clear()
        self.num_bytes = 0
