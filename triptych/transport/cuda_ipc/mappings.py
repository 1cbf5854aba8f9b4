"""SlabMappings: the slabs of producers as they are mapped into this process, each once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from triptych.errors import Unavailable
from triptych.transport.cuda_ipc.driver import CudaDriver


@dataclass(eq=False)
class _Mapping:
    handle: bytes
    address: int
    num_users: int = 0
    last_used_s: float = 0.0
    is_dropped: bool = False


class SlabMappings:
    """By producer incarnation. A mapping keeps the memory of a producer that died: those that nobody used for `idle_s`
    go, and so do those of a producer that is known to be gone."""

    def __init__(self, driver: CudaDriver, idle_s: float) -> None:
        self._driver = driver
        self._idle_s = idle_s
        self._mappings: dict[str, _Mapping] = {}
        self._opening: dict[str, asyncio.Task[_Mapping]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._mappings)

    @asynccontextmanager
    async def mapped(self, producer_id: str, handle: bytes) -> AsyncIterator[int]:
        """The address of the slab in this process, for the length of the block. Raises Unavailable."""
        mapping = self._mappings.get(producer_id)
        if mapping is None or mapping.handle != handle:
            if producer_id not in self._opening:
                self.drop(producer_id)
                self._opening[producer_id] = asyncio.create_task(self._map(producer_id, handle))
            # Shielded: what was mapped must be known even when the first one that wants it is cancelled.
            mapping = await asyncio.shield(self._opening[producer_id])
            if mapping.is_dropped:
                raise Unavailable(f"{producer_id} is gone, and the mapping of its GPU memory with it")
        mapping.num_users += 1
        try:
            yield mapping.address
        finally:
            mapping.num_users -= 1
            mapping.last_used_s = asyncio.get_running_loop().time()
            if mapping.is_dropped:
                self._unmap(mapping)
            else:
                self._watch_idle()

    def drop(self, producer_id: str) -> None:
        """Unmap now, or when the last reader is done."""
        mapping = self._mappings.pop(producer_id, None)
        if mapping is not None:
            mapping.is_dropped = True
            self._unmap(mapping)

    def close(self) -> None:
        """Unmap everything."""
        if self._timer is not None:
            self._timer.cancel()
        for producer_id in list(self._mappings):
            self.drop(producer_id)

    async def _map(self, producer_id: str, handle: bytes) -> _Mapping:
        try:
            mapping = _Mapping(handle, await asyncio.to_thread(self._driver.map, handle))
        finally:
            del self._opening[producer_id]
        mapping.last_used_s = asyncio.get_running_loop().time()
        self._mappings[producer_id] = mapping
        self._watch_idle()
        return mapping

    def _unmap(self, mapping: _Mapping) -> None:
        if mapping.num_users == 0:
            self._driver.unmap(mapping.address)

    def _watch_idle(self) -> None:
        loop = asyncio.get_running_loop()
        for producer_id, mapping in list(self._mappings.items()):
            if mapping.num_users == 0 and mapping.last_used_s + self._idle_s <= loop.time():
                self.drop(producer_id)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(max(self._idle_s / 4, 0.01), self._watch_idle) if self._mappings else None
