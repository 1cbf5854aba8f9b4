"""SharedMemorySlab: one file under /dev/shm in which a producer lays tensors for consumers of its host.

The owner holds an flock on the file for its whole life. A lock that can be taken therefore means a dead owner, however
it died, and `sweep_dead_slabs` removes the file. Consumers lock the pieces that they read (see `slab_reader`).
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from triptych.errors import ConfigurationError, Overloaded, Unavailable
from triptych.transport.copying import byte_array, copy_bytes
from triptych.transport.device_copy import DeviceCopies
from triptych.transport.extents import Extent, ExtentAllocator
from triptych.transport.host import SHARED_MEMORY_FOLDER
from triptych.transport.lanes import LANE_MEMORY_FIELD
from triptych.transport.parallel_copy import ParallelCopy
from triptych.transport.range_lock import try_lock, unlock
from triptych.transport.slab_layout import SLAB_NAME, SLAB_PREFIX, STAMP, STAMP_BYTES
from triptych.transport.slab_reader import SlabPiece

logger = logging.getLogger(__name__)

_NO_STAMP = 0
# Two cores copy 16 MiB in half the time of one; more are the business of the work beside it.
_NUM_COPY_THREADS = 2
_MADV_POPULATE_WRITE = 23


class SharedMemorySlab:
    """Owns the file "triptych-<producer_id>" of `num_bytes` (sparse: memory is taken when it is first used).

    `allocate` and `free` are bookkeeping for one thread (the event loop); `write` may run in another. A piece that is
    freed while a consumer reads it is lent: it can be had again when no consumer reads it any more.
    """

    def __init__(self, producer_id: str, num_bytes: int, folder: Path = SHARED_MEMORY_FOLDER) -> None:
        self.name = f"{SLAB_PREFIX}{producer_id}"
        if not SLAB_NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"producer id {producer_id!r}: only letters, digits and '-' can name a slab", field="producer_id"
            )
        self._extents = ExtentAllocator(self.name, num_bytes, mmap.ALLOCATIONGRANULARITY, LANE_MEMORY_FIELD)
        self._path = folder / self.name
        self._file = _create_locked(self._path)
        try:
            # Fails here rather than in mid-transfer where the system has no such locks.
            try_lock(self._file, 0, 1, is_exclusive=True)
            unlock(self._file, 0, 1)
            os.ftruncate(self._file, self.num_bytes)
            self._memory = mmap.mmap(self._file, self.num_bytes)
        except OSError:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            raise
        self._copies = DeviceCopies()
        self._parallel = ParallelCopy(_NUM_COPY_THREADS)
        self._stamps = itertools.count(_NO_STAMP + 1)
        self._lent: list[Extent] = []
        self._backing = threading.Lock()
        self._num_backed = 0

    @property
    def num_bytes(self) -> int:
        return self._extents.num_bytes

    @property
    def free_bytes(self) -> int:
        self._take_back()
        return self._extents.free_bytes

    def allocate(self, num_bytes: int) -> Extent:
        """First free piece for a tensor of `num_bytes`. Raises Overloaded when there is none."""
        self._take_back()
        return self._extents.allocate(STAMP_BYTES + num_bytes)

    def free(self, extent: Extent) -> None:
        """Give a piece back, at once or when its last reader is gone; it joins free neighbours."""
        self._lent.append(extent)
        self._take_back()

    def write(self, extent: Extent, tensor: torch.Tensor, has_checksum: bool = True) -> tuple[SlabPiece, int | None]:
        """Copy the bytes of `tensor` (any device) into `extent`; returns where they are, and their crc32 if wanted.

        Raises Overloaded when the host has no memory left for /dev/shm.
        """
        assert self._extents.is_taken(extent) and STAMP_BYTES + tensor.nbytes <= extent.length
        self._back(extent)
        offset = extent.offset + STAMP_BYTES
        target = np.frombuffer(self._memory, np.uint8, tensor.nbytes, offset)
        on_host = tensor.contiguous() if tensor.device.type == "cpu" else self._copies.to_host(tensor)
        crc32 = copy_bytes(byte_array(on_host), target, has_checksum, self._parallel.copy)
        stamp = next(self._stamps)
        STAMP.pack_into(self._memory, extent.offset, stamp)
        return SlabPiece(self.name, offset, tensor.nbytes, stamp), crc32

    def _back(self, extent: Extent) -> None:
        """The kernel is asked for memory first, since touching a page that it can't back would kill the process with
        SIGBUS. What was backed once stays so."""
        with self._backing:
            missing = extent.end - self._num_backed
            if missing <= 0:
                return
            try:
                os.posix_fallocate(self._file, self._num_backed, missing)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                    raise
                raise _full(f"slab {self.name}: {SHARED_MEMORY_FOLDER} has no {missing} bytes left") from None
            self._map_pages(self._num_backed, missing)
            self._num_backed = extent.end

    def _map_pages(self, offset: int, num_bytes: int) -> None:
        """At once, in a quarter of the time that faults take one by one; not every kernel can."""
        with suppress(OSError):
            self._memory.madvise(_MADV_POPULATE_WRITE, offset, num_bytes)

    def _take_back(self) -> None:
        """Free the lent pieces that nobody reads. Their stamps go first: whoever comes later must not read them."""
        still_lent = []
        for extent in self._lent:
            if not try_lock(self._file, extent.offset, extent.length, is_exclusive=True):
                still_lent.append(extent)
                continue
            STAMP.pack_into(self._memory, extent.offset, _NO_STAMP)
            unlock(self._file, extent.offset, extent.length)
            self._extents.free(extent)
        self._lent = still_lent

    def close(self) -> None:
        """Remove the file; idempotent. Consumers that have it mapped keep their view."""
        if self._file < 0:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1
        self._parallel.close()
        try:
            self._memory.close()
        except BufferError:
            logger.debug("slab %s is still being written; its mapping goes with the last view", self.name)


def sweep_dead_slabs(folder: Path = SHARED_MEMORY_FOLDER) -> list[str]:
    """Remove the slabs whose owner is gone; returns their names. Slabs of other users are left alone."""
    if not folder.is_dir():
        return []
    return [
        path.name
        for path in sorted(folder.glob(f"{SLAB_PREFIX}*"))
        if SLAB_NAME.fullmatch(path.name) and _unlink_if_dead(path)
    ]


def _create_locked(path: Path) -> int:
    """A new file that this process holds the lock of; tried again when a sweeper was quicker than the lock."""
    for _ in range(10):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink > 0:
                return file
        except BlockingIOError:
            path.unlink(missing_ok=True)
        os.close(file)
    raise Unavailable(f"can't create {path}: another process keeps removing it")


def _unlink_if_dead(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _full(message: str) -> Overloaded:
    return Overloaded(f"{message} ({LANE_MEMORY_FIELD})", field=LANE_MEMORY_FIELD)
