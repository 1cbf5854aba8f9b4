"""Embeddings by content: the same picture is encoded once."""

from collections import OrderedDict

from torch import Tensor

from triptych.models.qwen2_5_vl.grid import Grid

# The grid is part of the key, so that a ticket with a wrong one is never answered from the cache.
ContentId = tuple[str, Grid]


class EmbeddingCache:
    """Least recently used embeddings, at most `max_bytes` of them (0 turns it off). Lives on the event loop.

    An embedding that falls out while a lease holds it lives on with the lease; its bytes count here no more.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._tensors: OrderedDict[ContentId, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, content: ContentId) -> bool:
        return content in self._tensors

    def get(self, content: ContentId) -> Tensor | None:
        """The embedding, now the most recently used one, or None."""
        tensor = self._tensors.get(content)
        if tensor is not None:
            self._tensors.move_to_end(content)
        return tensor

    def put(self, content: ContentId, tensor: Tensor) -> None:
        """Keeps `tensor`, which owns its memory, and drops the least recently used ones over the bound."""
        self._remove(content)
        if tensor.nbytes > self.max_bytes:
            return
        self._tensors[content] = tensor
        self.num_bytes += tensor.nbytes
        while self.num_bytes > self.max_bytes:
            self._remove(next(iter(self._tensors)))

    def clear(self) -> None:
        self._tensors.clear()
        self.num_bytes = 0

    def _remove(self, content: ContentId) -> None:
        tensor = self._tensors.pop(content, None)
        if tensor is not None:
            self.num_bytes -= tensor.nbytes
