"""Files with damaged metadata leave nothing in the log, and nothing in memory."""

import struct
import warnings

from media_samples import encoded, picture
from PIL import TiffImagePlugin

from triptych.config import LimitsSection
from triptych.media import mute_pillow, probe_image


def damaged_exif(count: int) -> bytes:
    """A JPEG with an EXIF entry of `count` values, more than the file has."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, count, 0xFFFF) + bytes(4)
    data = encoded(picture(60, 40), "JPEG")
    return data[:2] + struct.pack(">BBH", 0xFF, 0xE1, len(exif) + 2) + exif + data[2:]


def test_damaged_metadata_is_not_remembered() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe_image(damaged_exif(1_000), LimitsSection(), "image")
        assert caught, "Pillow says nothing about this file any more: the test needs another one"
        caught.clear()
        mute_pillow()
        remembered = set(getattr(TiffImagePlugin, "__warningregistry__", {}))
        for count in range(1_001, 1_021):
            assert probe_image(damaged_exif(count), LimitsSection(), "image").width == 60
        assert not caught
        assert set(getattr(TiffImagePlugin, "__warningregistry__", {})) - {"version"} <= remembered
