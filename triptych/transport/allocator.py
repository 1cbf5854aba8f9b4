"""How the C library's allocator treats the memory of messages."""

from __future__ import annotations

import ctypes

# Of <malloc.h>: from which size on a block is mapped and unmapped by itself, and how much free memory is kept.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_BYTES = 32 << 20
_KEPT_BYTES = 64 << 20


def keep_message_memory() -> None:
    """Let this process use the memory of one message for the next, instead of giving it back in between.

    To take each page of it from the kernel anew costs more than gRPC itself. The two figures are those that glibc
    comes to by itself once a block of 32 MiB was freed; here they hold from the start. Without glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
