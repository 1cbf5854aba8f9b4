"""One picture before the first one."""

import io

from PIL import Image

from encoder_service.engines import VisionEngine
from encoder_service.media.image import decode_image
from triptych.config import LimitsSection
from triptych.media.layout import MediaProcessing


def warm_up(engine: VisionEngine, processing: MediaProcessing) -> None:
    """Takes a small picture all the way, so that no request pays for code and kernels that load on first use."""
    image = processing.image
    side = 2 * image.patch_size * image.merge_size
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "JPEG")
    pixels = decode_image(file.getvalue(), LimitsSection(), "warm-up")
    engine.encode(image.patchify(pixels).to(engine.device), [image.image_grid(side, side)])
