"""What both ends of a slab under /dev/shm agree on: how it is named, and the stamp before the bytes of each tensor."""

from __future__ import annotations

import re
import struct

SLAB_PREFIX = "triptych-"
SLAB_NAME = re.compile(r"triptych-[A-Za-z0-9-]{1,200}")

# A number that a slab gives to one tensor only; 0 for none. Padded to a cache line, so that the bytes lie on one too.
STAMP = struct.Struct("<Q")
STAMP_BYTES = 64
