"""Decodes the sampled frames of a video, one at a time, so that a long one never lies in memory whole."""

from collections.abc import Iterator, Sequence
from threading import Event

import torch
from torch import Tensor

from encoder_service.media.image import decode_image
from triptych.config import LimitsSection
from triptych.errors import Cancelled, InvalidRequest
from triptych.media import open_video


def decode_video(
    data: bytes, indices: Sequence[int], limits: LimitsSection, field: str, given_up: Event | None = None
) -> Iterator[Tensor]:
    """The frames at `indices` (ascending, from 0) of a video file, each RGB uint8 [1, 3, H, W].

    Raises InvalidRequest when a frame is broken, has another size than the first, or does not come; Cancelled soon
    after `given_up` was set, since frames between the sampled ones take their time too.
    """
    with open_video(data, limits, field) as (container, stream):
        # A worker is one thread, and bounds hold for what the bit stream says as well as for the container's header.
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(limits.max_image_pixels)}
        wanted = iter(indices)
        next_wanted = next(wanted, None)
        for position, frame in enumerate(container.decode(stream)):
            if next_wanted is None:
                return
            _check_is_wanted(given_up, field)
            if position != next_wanted:
                continue
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None].contiguous()
            while next_wanted == position:
                yield pixels
                next_wanted = next(wanted, None)
    if next_wanted is not None:
        raise InvalidRequest(f"{field} ends before frame {next_wanted}, which its header promises", field=field)


def decode_frames(
    frames: Sequence[bytes], indices: Sequence[int], limits: LimitsSection, field: str, given_up: Event | None = None
) -> Iterator[Tensor]:
    """The pictures at `indices` of a video that came as image files, each RGB uint8 [1, 3, H, W].

    Raises what `decode_image` raises; Cancelled when `given_up` was set.
    """
    for index in indices:
        _check_is_wanted(given_up, field)
        yield decode_image(frames[index], limits, f"{field}[{index}]")


def _check_is_wanted(given_up: Event | None, field: str) -> None:
    if given_up is not None and given_up.is_set():
        raise Cancelled(f"{field} is not wanted any more")
