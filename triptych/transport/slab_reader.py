"""The consumer's side of a SharedMemorySlab: tensors read where the producer laid them, or copied out of there.

A piece is locked for reading while it is mapped. Its producer writes there again only when nobody holds that lock, so
it needs no word from the consumer, and no time limit, to know: the kernel drops the lock with the mapping, or with the
process. The stamp in front of the bytes tells a consumer that comes too late, after the piece was taken back.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from triptych.errors import IntegrityError, Unavailable
from triptych.transport.copying import byte_array, copy_bytes
from triptych.transport.host import SHARED_MEMORY_FOLDER
from triptych.transport.range_lock import try_lock
from triptych.transport.slab_layout import SLAB_NAME, STAMP, STAMP_BYTES
from triptych.transport.ticket import TensorSpec

_MADV_POPULATE_READ = 22


@dataclass(frozen=True)
class SlabPiece:
    """Where a tensor lies: slab, offset and length in bytes, and the stamp that must stand before it."""

    name: str
    offset: int
    num_bytes: int
    stamp: int


def read_in_place(piece: SlabPiece, spec: TensorSpec, folder: Path = SHARED_MEMORY_FOLDER) -> torch.Tensor:
    """The tensor `spec` in the memory of `piece`, which stays locked until the tensor and all views of it are gone.

    Takes microseconds, whatever the length: pages are mapped when they are first read. The mapping is private: whoever
    writes to the tensor writes to pages of its own, and nobody else sees that.
    Raises Unavailable when the slab can't be read here (any more), IntegrityError when name or bounds are wrong.
    """
    memory, start = _map(piece, folder)
    flat = torch.frombuffer(memory, dtype=spec.dtype, count=piece.num_bytes // spec.dtype.itemsize, offset=start)
    return flat.view(spec.shape)


def copy_out(piece: SlabPiece, crc32: int | None, target: torch.Tensor, folder: Path = SHARED_MEMORY_FOLDER) -> None:
    """Copy the bytes of `piece` into `target` (contiguous, CPU, of that length), and let go of it; checks them where
    there is a checksum. Raises as `read_in_place`, and IntegrityError when the checksum is wrong.
    """
    assert target.nbytes == piece.num_bytes
    memory, start = _map(piece, folder)
    with memory:
        _map_pages(memory)
        source = np.frombuffer(memory, np.uint8, piece.num_bytes, start)
        actual = copy_bytes(source, byte_array(target), crc32 is not None)
        del source  # Or the mapping could not be closed.
    if actual != crc32:
        raise IntegrityError(
            f"shared memory {piece.name} at {piece.offset}: crc32 {actual:08x}, expected {crc32:08x}",
            field="shared_memory.crc32",
        )


def _map(piece: SlabPiece, folder: Path) -> tuple[mmap.mmap, int]:
    """A private mapping that holds the lock, and where in it the bytes begin."""
    if not SLAB_NAME.fullmatch(piece.name):
        raise IntegrityError(
            f"shared memory name {piece.name[:80]!r}: expected {SLAB_NAME.pattern}", field="shared_memory.name"
        )
    try:
        file = os.open(folder / piece.name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"can't open shared memory {piece.name}: {error.strerror}") from None
    try:
        _check_bounds(piece, os.fstat(file))
        return _map_locked(piece, file)
    except OSError as error:
        raise Unavailable(f"can't map shared memory {piece.name}: {error.strerror}") from None
    finally:
        os.close(file)  # The mapping has a duplicate, and that the lock.


def _check_bounds(piece: SlabPiece, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise IntegrityError(f"shared memory {piece.name} is not a regular file", field="shared_memory.name")
    if piece.offset < STAMP_BYTES or piece.offset % STAMP_BYTES != 0:
        raise IntegrityError(
            f"shared memory {piece.name}: offset {piece.offset}, expected a multiple of {STAMP_BYTES} from there on",
            field="shared_memory.offset",
        )
    if piece.offset + piece.num_bytes > status.st_size:
        raise IntegrityError(
            f"shared memory {piece.name}: {piece.num_bytes} bytes at {piece.offset} reach past its end at "
            f"{status.st_size}",
            field="shared_memory.offset",
        )


def _map_locked(piece: SlabPiece, file: int) -> tuple[mmap.mmap, int]:
    first = piece.offset - STAMP_BYTES
    end = piece.offset + piece.num_bytes
    if not try_lock(file, first, end - first, is_exclusive=False):
        raise _taken_back(piece)
    begin = first - first % mmap.ALLOCATIONGRANULARITY
    memory = mmap.mmap(file, end - begin, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=begin)
    if STAMP.unpack_from(memory, first - begin)[0] != piece.stamp:
        memory.close()
        raise _taken_back(piece)
    return memory, piece.offset - begin


def _map_pages(memory: mmap.mmap) -> None:
    """All at once rather than fault by fault; only a matter of speed, and not every kernel can."""
    try:
        memory.madvise(_MADV_POPULATE_READ)
    except OSError:
        return


def _taken_back(piece: SlabPiece) -> Unavailable:
    return Unavailable(f"shared memory {piece.name} at {piece.offset}: the producer has taken the piece back")
