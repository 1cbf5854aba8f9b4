"""From media bytes to patches: decode, resize, normalise. Runs on media threads and a device thread, never on the
event loop."""

from encoder_service.media.image import decode_image
from encoder_service.media.loader import LoaderSource, PackedPatches, PatchLoader, make_patch_loader
from encoder_service.media.prepare import prepare_patches
from encoder_service.media.prepared import PreparedMedia
from encoder_service.media.video import decode_frames, decode_video

__all__ = [
    "LoaderSource",
    "PackedPatches",
    "PatchLoader",
    "PreparedMedia",
    "decode_frames",
    "decode_image",
    "decode_video",
    "make_patch_loader",
    "prepare_patches",
]
