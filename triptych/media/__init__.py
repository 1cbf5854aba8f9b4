"""Pictures and videos as bytes: their sizes read from headers within bounds, and the key that names their content.

The router learns sizes here without decoding; an encoder opens the same files through the same checks.
No torch is imported, and PyAV only when a video comes.
"""

from triptych.media.content_key import content_key
from triptych.media.frames import probe_frames
from triptych.media.image import open_image, probe_image
from triptych.media.pillow_warnings import mute_pillow
from triptych.media.shapes import ImageShape, VideoShape
from triptych.media.video import count_frames, open_video, probe_video

__all__ = [
    "ImageShape",
    "VideoShape",
    "content_key",
    "count_frames",
    "mute_pillow",
    "open_image",
    "open_video",
    "probe_frames",
    "probe_image",
    "probe_video",
]
