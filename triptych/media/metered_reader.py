"""The bytes of a picture file for Pillow to read, with a bound on how often it may read before it reaches the pixels.

Pillow walks over a file's segments, chunks and blocks one by one, and keeps most of them. A file of a few megabytes
that consists of a million tiny ones costs seconds and 40 times its size in memory; EXIF segments, which are joined one
by one, even time by the square of their number.
"""

import io

from triptych.errors import InvalidRequest

# Four for each segment of a JPEG file. With 1,024 segments one of limits.max_image_bytes may be nothing but metadata.
MAX_HEADER_READS = 4_096


class MeteredReader(io.BytesIO):
    """Raises InvalidRequest, naming `field`, at the read over the bound."""

    def __init__(self, data: bytes, field: str) -> None:
        super().__init__(data)
        self._field = field
        self._max_reads = MAX_HEADER_READS
        self._num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._num_reads += 1
        if self._num_reads > self._max_reads:
            raise InvalidRequest(
                f"{self._field} has too many segments, chunks or blocks: more than {self._max_reads} reads "
                "were needed to get through them, expected a file as cameras and programs write them",
                field=self._field,
            )
        return super().read(size)

    def allow_pixels(self, num_pixels: int) -> None:
        """The header was read; decoding may begin. No format needs more than one read for each pixel."""
        self._max_reads = self._num_reads + MAX_HEADER_READS + num_pixels
