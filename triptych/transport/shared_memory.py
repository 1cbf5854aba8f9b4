"""SharedMemorySlab: one file under /dev/shm in which a producer lays tensors for consumers of its host.

The owner holds an flock on the file for its whole life. A lock that can be taken therefore means a dead owner, however
it died, and `sweep_dead_slabs` removes the file.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import re
import stat
from pathlib import Path

import numpy as np
import torch

from triptych.errors import ConfigurationError, IntegrityError, Overloaded, Unavailable
from triptych.transport.copying import byte_array, copy_bytes
from triptych.transport.device_copy import DeviceCopies
from triptych.transport.extents import Extent, ExtentAllocator
from triptych.transport.host import SHARED_MEMORY_FOLDER
from triptych.transport.lanes import LANE_MEMORY_FIELD

logger = logging.getLogger(__name__)

SLAB_PREFIX = "triptych-"

_NAME = re.compile(r"triptych-[A-Za-z0-9-]{1,200}")


class SharedMemorySlab:
    """Owns the file "triptych-<producer_id>" of `num_bytes` (sparse: memory is taken when it is first used).

    `allocate` and `free` are bookkeeping for one thread (the event loop); `write` may run in another.
    """

    def __init__(self, producer_id: str, num_bytes: int, folder: Path = SHARED_MEMORY_FOLDER) -> None:
        self.name = f"{SLAB_PREFIX}{producer_id}"
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"producer id {producer_id!r}: only letters, digits and '-' can name a slab", field="producer_id"
            )
        self._extents = ExtentAllocator(self.name, num_bytes, mmap.ALLOCATIONGRANULARITY, LANE_MEMORY_FIELD)
        self._path = folder / self.name
        self._file = _create_locked(self._path)
        try:
            os.ftruncate(self._file, self.num_bytes)
            self._memory = mmap.mmap(self._file, self.num_bytes)
        except OSError:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            raise
        self._copies = DeviceCopies()

    @property
    def num_bytes(self) -> int:
        return self._extents.num_bytes

    @property
    def free_bytes(self) -> int:
        return self._extents.free_bytes

    def allocate(self, num_bytes: int) -> Extent:
        """First free piece of at least `num_bytes`. Raises Overloaded when there is none."""
        return self._extents.allocate(num_bytes)

    def free(self, extent: Extent) -> None:
        """Give a piece back; it joins free neighbours."""
        self._extents.free(extent)

    def write(self, extent: Extent, tensor: torch.Tensor, has_checksum: bool = True) -> int | None:
        """Copy the bytes of `tensor` (any device) to the start of `extent`; returns their crc32 if wanted.

        Raises Overloaded when the host has no memory left for /dev/shm: the kernel is asked first, since touching a
        page that it can't back would kill the process with SIGBUS.
        """
        assert self._extents.is_taken(extent) and tensor.nbytes <= extent.length
        try:
            os.posix_fallocate(self._file, extent.offset, extent.length)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            raise _full(f"slab {self.name}: {SHARED_MEMORY_FOLDER} has no {extent.length} bytes left") from None
        target = np.frombuffer(self._memory, np.uint8, tensor.nbytes, extent.offset)
        on_host = tensor.contiguous() if tensor.device.type == "cpu" else self._copies.to_host(tensor)
        return copy_bytes(byte_array(on_host), target, has_checksum)

    def close(self) -> None:
        """Remove the file; idempotent. Consumers that have it mapped keep their view."""
        if self._file < 0:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1
        try:
            self._memory.close()
        except BufferError:
            logger.debug("slab %s is still being written; its mapping goes with the last view", self.name)


def read_slab(
    name: str, offset: int, crc32: int | None, target: torch.Tensor, folder: Path = SHARED_MEMORY_FOLDER
) -> None:
    """Copy `target.nbytes` bytes at `offset` of the slab `name` into `target` (contiguous, CPU) and check them,
    where there is a checksum.

    Raises Unavailable when the slab can't be read here, IntegrityError when name, bounds or checksum are wrong.
    """
    if not _NAME.fullmatch(name):
        raise IntegrityError(f"shared memory name {name[:80]!r}: expected {_NAME.pattern}", field="shared_memory.name")
    try:
        file = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"can't open shared memory {name}: {error.strerror}") from None
    try:
        actual = _copy_out(file, name, offset, target, crc32 is not None)
    finally:
        os.close(file)
    if actual != crc32:
        raise IntegrityError(
            f"shared memory {name} at {offset}: crc32 {actual:08x}, expected {crc32:08x}", field="shared_memory.crc32"
        )


def sweep_dead_slabs(folder: Path = SHARED_MEMORY_FOLDER) -> list[str]:
    """Remove the slabs whose owner is gone; returns their names. Slabs of other users are left alone."""
    if not folder.is_dir():
        return []
    return [
        path.name
        for path in sorted(folder.glob(f"{SLAB_PREFIX}*"))
        if _NAME.fullmatch(path.name) and _unlink_if_dead(path)
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


def _copy_out(file: int, name: str, offset: int, target: torch.Tensor, has_checksum: bool) -> int | None:
    """The crc32 is of the copy: the producer might reuse the piece while it is being read."""
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise IntegrityError(f"shared memory {name} is not a regular file", field="shared_memory.name")
    if offset + target.nbytes > status.st_size:
        raise IntegrityError(
            f"shared memory {name}: {target.nbytes} bytes at {offset} reach past its end at {status.st_size}",
            field="shared_memory.offset",
        )
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(
        file, offset + target.nbytes - start, mmap.MAP_SHARED | _POPULATE, mmap.PROT_READ, offset=start
    ) as memory:
        source = np.frombuffer(memory, np.uint8, target.nbytes, offset - start)
        crc32 = copy_bytes(source, byte_array(target), has_checksum)
        del source  # Or the mapping could not be closed.
    return crc32


_POPULATE: int = getattr(mmap, "MAP_POPULATE", 0)


def _full(message: str) -> Overloaded:
    return Overloaded(f"{message} ({LANE_MEMORY_FIELD})", field=LANE_MEMORY_FIELD)
