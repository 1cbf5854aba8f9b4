"""The loader of stages with a GPU: what it can decode stays there; it resizes, normalises and cuts everything."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from encoder_service.items import MediaItem
from encoder_service.media.image import decode_image
from encoder_service.media.jpeg_decoder import JpegDecoder, NvJpegDecoder
from encoder_service.media.loader import LoaderSource, PackedPatches
from encoder_service.media.patcher import FramePatcher
from encoder_service.media.prepare import check_decoded, checked_layout, decoded_frames
from encoder_service.media.prepared import DecodedFrames, EncodedJpeg, PreparedMedia
from triptych.config import EncoderSection, LimitsSection
from triptych.errors import ConfigurationError, TriptychError
from triptych.media import open_image
from triptych.media.image import exif_orientation
from triptych.media.jpeg import read_plain_jpeg
from triptych.media.layout import MediaLayout, MediaProcessing
from triptych.media.orientation import QUARTER_TURNS, UPRIGHT
from triptych.models.qwen2_5_vl.processing.resize import resize_frames
from triptych.v1 import common_pb2

logger = logging.getLogger(__name__)

# Frames that shrink by more than this are resized by the CPU that decoded them, so that what waits to be packed is
# bounded by the patches that were admitted, not by the pixels of the files.
_MAX_SHRINK = 4


@dataclass(frozen=True)
class _Placed:
    """An item of a batch, and the rows of the packed patches that are its own unless it fails."""

    index: int
    media: PreparedMedia


class GpuPatchLoader:
    """`prepare` reads headers and decodes what the device's decoder does not take; `pack` does the rest on a stream of
    its own. Pixels on the device stay within `section.media_bytes`, but for a picture that is larger alone.

    On a CPU device the same steps run in plain torch.
    """

    def __init__(
        self,
        processing: MediaProcessing,
        limits: LimitsSection,
        section: EncoderSection,
        device: torch.device,
        dtype: torch.dtype,
        decoder: JpegDecoder | None,
    ) -> None:
        self._processing = processing
        self._limits = limits
        self._device = device
        self._dtype = dtype
        self._decoder = decoder
        self._max_bytes = section.media_bytes
        self._is_pinned = device.type == "cuda"
        self._patcher = FramePatcher(processing.image, device)
        # Waiting behind the tower's kernels would keep the next batch from them.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._refused = ThreadPoolExecutor(section.media_workers or None, thread_name_prefix="encoder-refused")

    @classmethod
    def make(cls, source: LoaderSource) -> "GpuPatchLoader":
        if source.device.type != "cuda":
            raise ConfigurationError(
                f"stages.encoder.media is gpu, but the encoder runs on {source.device}: set it to auto or cpu, or "
                "give the stage a GPU (model.device, stages.encoder.num_gpus)",
                field="stages.encoder.media",
            )
        decoder = NvJpegDecoder.open(source.device)
        if decoder is None:
            logger.warning("torchvision with nvJPEG is not installed: JPEG files are decoded on the CPU")
        loader = cls(source.processing, source.limits, source.section, source.device, source.dtype, decoder)
        loader.warm_up()
        return loader

    def prepare(self, item: MediaItem, given_up: Event | None = None) -> PreparedMedia:
        layout = checked_layout(item, self._processing, self._limits)
        patch_size = self._processing.image.patch_size
        resized = (layout.grid.h * patch_size, layout.grid.w * patch_size)
        if item.media.kind == common_pb2.MEDIA_KIND_IMAGE:
            content = self._encoded_jpeg(item, layout) or self._picture(item, layout, resized)
        else:
            content = self._video(item, layout, resized, given_up)
        return PreparedMedia(layout.grid, item.field, resized, content)

    @torch.inference_mode()
    def pack(self, media: Sequence[PreparedMedia]) -> PackedPatches:
        errors: list[TriptychError | None] = [None] * len(media)
        with self._on_stream():
            num_patches = sum(item.num_patches for item in media)
            patches = torch.empty((num_patches, self._patcher.patch_dim), dtype=self._dtype, device=self._device)
            row = 0
            for batch in self._batches(media):
                decoded = self._decoded([placed.media for placed in batch])
                for placed, frames in zip(batch, decoded, strict=True):
                    if isinstance(frames, TriptychError):
                        errors[placed.index] = frames
                        continue
                    self._patch(placed.media, frames, patches[row : row + placed.media.num_patches])
                    row += placed.media.num_patches
                # Their memory is for the next batch.
                del decoded, frames
            ready = self._stream.record_event() if self._stream is not None else None
        return PackedPatches(patches[:row], tuple(errors), ready)

    def close(self) -> None:
        self._refused.shutdown(cancel_futures=True)

    def warm_up(self) -> None:
        """Compiles the kernels for still pictures and for videos, resized and not, and waits until they are done."""
        factor = self._processing.image.factor
        with self._on_stream():
            for num_frames, side in ((1, factor), (1, factor + 3), (2, factor), (2, factor + 3)):
                frames = torch.zeros((num_frames, 3, side, side), dtype=torch.uint8, device=self._device)
                shape = (self._processing.image.merge_size**2, self._patcher.patch_dim)
                self._patcher.patch(
                    frames, (factor, factor), torch.empty(shape, dtype=self._dtype, device=self._device)
                )
        if self._stream is not None:
            self._stream.synchronize()

    def _encoded_jpeg(self, item: MediaItem, layout: MediaLayout) -> EncodedJpeg | None:
        """The file as it is, when the device will decode it."""
        data = item.media.data
        jpeg = read_plain_jpeg(data)
        if self._decoder is None or jpeg is None or not self._decoder.takes(jpeg):
            return None
        orientation = exif_orientation(open_image(data, self._limits, f"{item.field}.data"))
        size = (jpeg.height, jpeg.width)
        upright = size[::-1] if orientation in QUARTER_TURNS else size
        if upright != (layout.height, layout.width):
            return None
        return EncodedJpeg(data, *size, orientation)

    def _picture(self, item: MediaItem, layout: MediaLayout, resized: tuple[int, int]) -> DecodedFrames:
        is_shrunk = _shrinks_much(layout, resized)
        is_pinned = self._is_pinned and not is_shrunk
        pixels = decode_image(item.media.data, self._limits, f"{item.field}.data", is_pinned=is_pinned)
        check_decoded(pixels, layout, item.field)
        return DecodedFrames(self._pinned(resize_frames(pixels, *resized)) if is_shrunk else pixels)

    def _video(
        self, item: MediaItem, layout: MediaLayout, resized: tuple[int, int], given_up: Event | None
    ) -> DecodedFrames:
        is_shrunk = _shrinks_much(layout, resized)
        size = resized if is_shrunk else (layout.height, layout.width)
        frames = torch.empty((len(layout.frame_indices), 3, *size), dtype=torch.uint8, pin_memory=self._is_pinned)
        for index, frame in enumerate(decoded_frames(item, layout, self._limits, given_up)):
            check_decoded(frame, layout, item.field)
            frames[index] = resize_frames(frame, *size)[0]
        return DecodedFrames(frames)

    def _pinned(self, frames: Tensor) -> Tensor:
        return frames.pin_memory() if self._is_pinned else frames

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _batches(self, media: Sequence[PreparedMedia]) -> Iterator[list[_Placed]]:
        """The items in order, as many at a time as fit into the budget, but at least one."""
        batch: list[_Placed] = []
        num_bytes = 0
        for index, item in enumerate(media):
            item_bytes = _device_bytes(item, self._max_bytes)
            if batch and num_bytes + item_bytes > self._max_bytes:
                yield batch
                batch, num_bytes = [], 0
            batch.append(_Placed(index, item))
            num_bytes += item_bytes
        if batch:
            yield batch

    def _decoded(self, media: Sequence[PreparedMedia]) -> list[DecodedFrames | Tensor | TriptychError]:
        """Per item: frames still on the CPU, pixels [3, H, W] on the device as stored, or why there are none."""
        jpegs = [item.content for item in media if isinstance(item.content, EncodedJpeg)]
        pixels = iter(self._decoder.decode(jpegs) if self._decoder is not None and jpegs else [])
        results = [next(pixels) if isinstance(item.content, EncodedJpeg) else item.content for item in media]
        refused = [item for item, result in zip(media, results, strict=True) if result is None]
        others = self._refused.map(self._decode_refused, refused)
        return [next(others) if result is None else result for result in results]  # type: ignore[misc]

    def _decode_refused(self, item: PreparedMedia) -> DecodedFrames | TriptychError:
        """On the CPU, which may know what the device did not, or else says what is wrong."""
        assert isinstance(item.content, EncodedJpeg)
        try:
            return DecodedFrames(
                decode_image(item.content.data, self._limits, f"{item.field}.data", is_pinned=self._is_pinned)
            )
        except TriptychError as error:
            return error

    def _patch(self, item: PreparedMedia, decoded: DecodedFrames | Tensor, out: Tensor) -> None:
        if isinstance(decoded, Tensor):
            assert isinstance(item.content, EncodedJpeg)
            self._patcher.patch(decoded[None], item.resized, out, item.content.orientation)
            return
        step_patches = item.grid.h * item.grid.w
        step_frames = self._processing.image.temporal_patch_size
        num_steps = _steps_at_once(item, decoded.frames, self._max_bytes)
        for step in range(0, item.grid.t, num_steps):
            some = decoded.frames[step * step_frames : (step + num_steps) * step_frames]
            rows = out[step * step_patches : (step + num_steps) * step_patches]
            on_device = some.to(self._device, non_blocking=True)
            self._patcher.patch(on_device, item.resized, rows, UPRIGHT)


def _shrinks_much(layout: MediaLayout, resized: tuple[int, int]) -> bool:
    return layout.height * layout.width > _MAX_SHRINK * resized[0] * resized[1]


def _frame_bytes(height: int, width: int, resized: tuple[int, int]) -> int:
    """A frame's pixels, and what is resized across and not yet down; a quarter turn may swap the sides."""
    return 3 * height * width + 3 * max(height, width) * max(resized)


def _device_bytes(item: PreparedMedia, max_bytes: int) -> int:
    content = item.content
    if isinstance(content, EncodedJpeg):
        return _frame_bytes(content.height, content.width, item.resized)
    assert isinstance(content, DecodedFrames), "media that another loader prepared"
    num_frames, _, height, width = content.frames.shape
    return min(num_frames * _frame_bytes(height, width, item.resized), max_bytes)


def _steps_at_once(item: PreparedMedia, frames: Tensor, max_bytes: int) -> int:
    """Temporal steps of a video that are on the device together."""
    num_frames, _, height, width = frames.shape
    step_bytes = -(-num_frames // item.grid.t) * _frame_bytes(height, width, item.resized)
    return max(1, max_bytes // step_bytes)
