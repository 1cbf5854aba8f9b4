"""Locks on pieces of a file that the kernel lets go of by itself when their holder closes the file or dies.

They are Linux's open file description locks (fcntl(2)): one belongs to the opened file and its duplicates, never to a
process or thread, so that a process may lock against itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

# l_type, l_whence, l_start, l_len, l_pid (0 for these locks) of `struct flock`, padded to its full size.
_FLOCK = struct.Struct("hhqqi0q")


def try_lock(file: int, offset: int, length: int, *, is_exclusive: bool) -> bool:
    """Lock `length` bytes at `offset`, for reading or for this file alone; False when another open file is in the way.

    Raises OSError where the system has no such locks.
    """
    try:
        _set(file, fcntl.F_WRLCK if is_exclusive else fcntl.F_RDLCK, offset, length)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(file: int, offset: int, length: int) -> None:
    _set(file, fcntl.F_UNLCK, offset, length)


def _set(file: int, kind: int, offset: int, length: int) -> None:
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, length, 0))
