"""From media bytes to patches: decode, resize, normalise. Runs on media threads, never on the event loop."""

from encoder_service.media.image import decode_image
from encoder_service.media.prepare import prepare_patches
from encoder_service.media.video import decode_frames, decode_video

__all__ = ["decode_frames", "decode_image", "decode_video", "prepare_patches"]
