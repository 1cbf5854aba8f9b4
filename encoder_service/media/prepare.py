"""The work of a media thread: one item's bytes to its patches."""

from collections.abc import Iterator
from itertools import islice
from threading import Event

import torch
from torch import Tensor

from encoder_service.items import MediaItem
from encoder_service.media.image import decode_image
from encoder_service.media.video import decode_frames, decode_video
from triptych.config import LimitsSection
from triptych.errors import InvalidRequest
from triptych.media import content_key
from triptych.media.layout import MediaLayout, MediaProcessing, media_layout
from triptych.v1 import common_pb2


def prepare_patches(
    item: MediaItem, processing: MediaProcessing, limits: LimitsSection, given_up: Event | None = None
) -> Tensor:
    """Patches float32 [num_patches, patch_dim] in the order of the item's grid.

    The header is measured first, and what it says must be the item's grid: nothing larger is decoded than was admitted.
    Raises InvalidRequest naming the item's field, and Cancelled when `given_up` is set while a video is decoded.
    """
    layout = checked_layout(item, processing, limits)
    if item.media.kind == common_pb2.MEDIA_KIND_IMAGE:
        return _image_patches(item, layout, processing, limits)
    return _video_patches(item, layout, processing, limits, given_up)


def checked_layout(item: MediaItem, processing: MediaProcessing, limits: LimitsSection) -> MediaLayout:
    """What the item's header says, which must be its grid. Raises InvalidRequest or RequestTooLarge otherwise."""
    key = content_key(item.media)
    if key != item.content_key:
        raise InvalidRequest(
            f"{item.field} has the content key {key}, expected {item.content_key!r} as its ticket says",
            field=item.field,
        )
    layout = media_layout(item.media, processing, limits, item.field)
    if layout.grid != item.grid:
        raise InvalidRequest(
            f"{item.field} makes the grid {layout.grid}, expected {item.grid} as its ticket says", field=item.field
        )
    return layout


def _image_patches(item: MediaItem, layout: MediaLayout, processing: MediaProcessing, limits: LimitsSection) -> Tensor:
    pixels = decode_image(item.media.data, limits, f"{item.field}.data")
    check_decoded(pixels, layout, item.field)
    return processing.image_with(item.media.options).patchify(pixels)


def _video_patches(
    item: MediaItem,
    layout: MediaLayout,
    processing: MediaProcessing,
    limits: LimitsSection,
    given_up: Event | None,
) -> Tensor:
    """Frames are resized and cut step by step, so that no more than one temporal step is held at full size."""
    video = processing.video_with(item.media.options)
    height, width = layout.grid.h * video.patch_size, layout.grid.w * video.patch_size
    steps = []
    frames = decoded_frames(item, layout, limits, given_up)
    while step := list(islice(frames, video.temporal_patch_size)):
        for frame in step:
            check_decoded(frame, layout, item.field)
        steps.append(video.patches_of_size(torch.cat(step), height, width))
    return torch.cat(steps)


def decoded_frames(
    item: MediaItem, layout: MediaLayout, limits: LimitsSection, given_up: Event | None
) -> Iterator[Tensor]:
    """The sampled frames of a video, each uint8 [1, 3, H, W]."""
    if item.media.WhichOneof("payload") == "frames":
        return decode_frames(item.media.frames.frames, layout.frame_indices, limits, f"{item.field}.frames", given_up)
    return decode_video(item.media.data, layout.frame_indices, limits, f"{item.field}.data", given_up)


def check_decoded(pixels: Tensor, layout: MediaLayout, field: str) -> None:
    """Raises InvalidRequest when the pixels have another size than the header promised."""
    height, width = pixels.shape[-2:]
    if (height, width) != (layout.height, layout.width):
        raise InvalidRequest(
            f"{field} was decoded to {width}x{height} pixels, expected {layout.width}x{layout.height} "
            f"as its header says (grid {layout.grid})",
            field=field,
        )
