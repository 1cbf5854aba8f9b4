"""crc32 of bytes, the checksum of every lane: `crc32_of_bytes(data, start=0)`, as zlib.crc32.

The library isal makes the same number about ten times as fast; not every platform has it.
"""

try:
    from isal.isal_zlib import crc32 as crc32_of_bytes
except ImportError:
    from zlib import crc32 as crc32_of_bytes

__all__ = ["crc32_of_bytes"]
