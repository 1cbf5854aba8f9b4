"""PageLanding: a prompt's KV pages as they come in, part by part, from another actor."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.transport.copying import run_copy
from triptych.transport.landing import landing_memory
from triptych.transport.parts import TicketPart
from triptych.transport.ticket import TensorSpec


class PageLanding:
    """Each part is laid where it belongs as soon as it has come, so that nothing but the last is left to be moved at
    the end. Belongs to one event loop; lies on the device on which the first part came."""

    def __init__(self, spec: TensorSpec, prefix: Tensor) -> None:
        """spec: [num_pages, num_layers, 2, page_size, num_kv_heads, head_dim]. prefix: the first pages, which are here
        already."""
        self._spec = spec
        self._prefix = prefix
        self._pages: Tensor | None = None
        self._num_missing = (spec.num_rows - len(prefix)) * spec.shape[1]

    async def put(self, part: TicketPart, tensor: Tensor) -> None:
        """The last rows of a part: those that are not here."""
        if self._pages is None:
            self._pages = self._allocate(tensor.device)
            self._pages[: len(self._prefix)].copy_(self._prefix)
        target = self._pages[part.end_row - len(tensor) : part.end_row, part.layers]
        if target.is_cuda and tensor.is_cuda:
            # Queued on the device's default stream, on which whoever reads the pages is too.
            target.copy_(tensor)
        else:
            await run_copy(tensor.nbytes, target.copy_, tensor)
        self._num_missing -= len(tensor) * (part.end_layer - part.first_layer)

    def pages(self) -> Tensor:
        """All of them. Every layer of every page has to be here, once."""
        assert self._pages is not None and self._num_missing == 0, f"{self._num_missing} layers of pages are missing"
        return self._pages

    def _allocate(self, device: torch.device) -> Tensor:
        if device.type == "cpu":
            return landing_memory(self._spec)
        return torch.empty(self._spec.shape, dtype=self._spec.dtype, device=device)
