"""Decoders of JPEG files that leave the pixels on the engine's device."""

import importlib.util
import io
from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from encoder_service.media.prepared import EncodedJpeg
from triptych.media.jpeg import PlainJpeg
from triptych.media.orientation import UPRIGHT

# Pixels of the shorter side.
_MIN_SIDE = 64


class JpegDecoder(Protocol):
    """All calls to `decode` come from one thread."""

    def takes(self, jpeg: PlainJpeg) -> bool:
        """Whether such a file is for this decoder; others are decoded on the CPU."""
        ...

    def decode(self, jpegs: Sequence[EncodedJpeg]) -> list[Tensor | None]:
        """Each file's pixels, RGB uint8 [3, height, width] as stored, on the device and ready for the current stream;
        None for one that is refused, or whose size is another than its header said."""
        ...


class NvJpegDecoder:
    """nvJPEG through torchvision: on the GPU's decoding engines, a whole batch at once.

    Its pixels are Pillow's, bit for bit, with 4:4:4 and grey. Halved colours are repeated where Pillow interpolates:
    in photographs a quarter of a level of 0 to 255 on average (53 dB), next to hard edges of saturated colours up to a
    hundred and more, 2 levels on average (33 dB). A file whose pixels are damaged may give other pixels than Pillow's,
    or pixels where Pillow gives an error.

    Left to the CPU, where several are decoded at a time: progressive files, since nvJPEG walks over each of their scans
    on the calling thread while all others wait (20 ms at 1080p), and small ones, which it is as quick with.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = torch.device("cuda", torch.cuda.current_device()) if device.index is None else device

    @classmethod
    def open(cls, device: torch.device) -> "NvJpegDecoder | None":
        """A decoder that has decoded a picture here; None without torchvision, or where it has no nvJPEG."""
        if importlib.util.find_spec("torchvision") is None:
            return None
        decoder, sample = cls(device), _sample()
        return decoder if decoder.decode([sample])[0] is not None else None

    def takes(self, jpeg: PlainJpeg) -> bool:
        return not jpeg.is_progressive and min(jpeg.width, jpeg.height) >= _MIN_SIDE

    def decode(self, jpegs: Sequence[EncodedJpeg]) -> list[Tensor | None]:
        # torchvision writes on a stream of its own, into memory that the allocator hands out for the current stream:
        # work that was enqueued here must not be reading it any more.
        torch.cuda.current_stream(self._device).synchronize()
        try:
            return [self._checked(jpeg, pixels) for jpeg, pixels in zip(jpegs, self._decode(jpegs), strict=True)]
        except RuntimeError:
            # One broken file fails the whole call, which does not say which one it was.
            return [None] if len(jpegs) == 1 else [self.decode([jpeg])[0] for jpeg in jpegs]

    def _decode(self, jpegs: Sequence[EncodedJpeg]) -> list[Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-not-found]

        files = [torch.frombuffer(bytearray(jpeg.data), dtype=torch.uint8) for jpeg in jpegs]
        pixels: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=self._device)
        return pixels

    @staticmethod
    def _checked(jpeg: EncodedJpeg, pixels: Tensor) -> Tensor | None:
        return pixels if pixels.shape == (3, jpeg.height, jpeg.width) else None


def _sample() -> EncodedJpeg:
    side = _MIN_SIDE
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "JPEG")
    return EncodedJpeg(file.getvalue(), side, side, UPRIGHT)
