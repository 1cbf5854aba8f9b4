"""From a picture's or video's header to its grid: the one computation that router and encoder must agree on."""

from dataclasses import dataclass, replace
from pathlib import Path

from triptych.config import LimitsSection
from triptych.errors import InvalidRequest
from triptych.media.frames import probe_frames
from triptych.media.image import probe_image
from triptych.media.shapes import VideoShape
from triptych.media.video import probe_video
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.processing import ImageProcessing, VideoProcessing
from triptych.v1 import common_pb2


@dataclass(frozen=True)
class MediaLayout:
    """What is known of a picture or video before it is decoded.

    `width` and `height` are those of the file, in pixels. `frame_indices` are the frames to take, in order (a picture
    has the one frame 0); `second_per_grid_t` is 0 for a picture.
    """

    width: int
    height: int
    grid: Grid
    frame_indices: tuple[int, ...]
    second_per_grid_t: float


@dataclass(frozen=True)
class MediaProcessing:
    """The checkpoint's processing of pictures and videos, changed by the options that an item carries."""

    image: ImageProcessing
    video: VideoProcessing

    @classmethod
    def from_folder(cls, path: Path) -> "MediaProcessing":
        """Reads the checkpoint's processor files; ModelError when they are missing."""
        return cls(ImageProcessing.from_folder(path), VideoProcessing.from_folder(path))

    def default_options(self, kind: common_pb2.MediaKind) -> common_pb2.ProcessingOptions:
        """The checkpoint's own values, written out so that they are part of the content key."""
        if kind == common_pb2.MEDIA_KIND_VIDEO:
            return common_pb2.ProcessingOptions(
                min_pixels=self.video.min_pixels,
                max_pixels=self.video.max_pixels,
                frames_per_second=self.video.fps,
                min_frames=self.video.min_frames,
                max_frames=self.video.max_frames,
            )
        return common_pb2.ProcessingOptions(min_pixels=self.image.min_pixels, max_pixels=self.image.max_pixels)

    def image_with(self, options: common_pb2.ProcessingOptions) -> ImageProcessing:
        """Processing of a picture under `options`; an option of 0 leaves the checkpoint's value."""
        return replace(
            self.image,
            min_pixels=options.min_pixels or self.image.min_pixels,
            max_pixels=options.max_pixels or self.image.max_pixels,
        )

    def video_with(self, options: common_pb2.ProcessingOptions) -> VideoProcessing:
        """Processing of a video under `options`; an option of 0 leaves the checkpoint's value."""
        return replace(
            self.video,
            min_pixels=options.min_pixels or self.video.min_pixels,
            max_pixels=options.max_pixels or self.video.max_pixels,
            fps=options.frames_per_second or self.video.fps,
            min_frames=options.min_frames or self.video.min_frames,
            max_frames=options.max_frames or self.video.max_frames,
        )


def media_layout(
    media: common_pb2.Media, processing: MediaProcessing, limits: LimitsSection, field: str
) -> MediaLayout:
    """Reads headers alone. `field` names the part of the request that holds the media, as `messages[0].parts[1].image`.

    Raises what `probe_image`, `probe_video` and `probe_frames` raise, and InvalidRequest for media without a kind or a
    payload.
    """
    payload = media.WhichOneof("payload")
    if media.kind == common_pb2.MEDIA_KIND_IMAGE and payload == "data":
        shape = probe_image(media.data, limits, f"{field}.data")
        grid = processing.image_with(media.options).image_grid(shape.height, shape.width)
        return MediaLayout(shape.width, shape.height, grid, (0,), 0.0)
    if media.kind == common_pb2.MEDIA_KIND_VIDEO and payload == "data":
        video = probe_video(media.data, limits, f"{field}.data")
        return _video_layout(video, processing.video_with(media.options))
    if media.kind == common_pb2.MEDIA_KIND_VIDEO and payload == "frames":
        frames = media.frames
        video = probe_frames(frames.frames, limits, field, frames_per_second=frames.frames_per_second)
        return _video_layout(video, processing.video_with(media.options))
    raise InvalidRequest(
        f"{field} is of kind {common_pb2.MediaKind.Name(media.kind)} with the payload {payload}, "
        "expected an image with data, or a video with data or frames",
        field=field,
    )


def _video_layout(video: VideoShape, processing: VideoProcessing) -> MediaLayout:
    if video.frames_per_second:
        indices = processing.sample_frames(video.num_frames, video.frames_per_second)
        second_per_grid_t = processing.second_per_grid_t(len(indices), video.num_frames, video.frames_per_second)
    else:
        # Frames without a rate were sampled by the caller, at the rate that the model is used to.
        indices = list(range(video.num_frames))
        second_per_grid_t = processing.temporal_patch_size / processing.fps
    grid = processing.video_grid(len(indices), video.height, video.width)
    return MediaLayout(video.width, video.height, grid, tuple(indices), second_per_grid_t)
