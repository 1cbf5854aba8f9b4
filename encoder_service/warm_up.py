"""One picture before the first one."""

import io

import torch
from PIL import Image

from encoder_service.engines import VisionEngine
from encoder_service.items import MediaItem
from encoder_service.media.loader import PatchLoader
from triptych.media import content_key
from triptych.media.layout import MediaProcessing
from triptych.v1 import common_pb2


def warm_up(engine: VisionEngine, loader: PatchLoader, processing: MediaProcessing) -> None:
    """Takes a small picture all the way, so that no request pays for code and kernels that load on first use. Waits
    until the device is done with it and with all before: the stage computes on streams of its own."""
    image = processing.image
    side = 2 * image.patch_size * image.merge_size
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "JPEG")
    media = common_pb2.Media(kind=common_pb2.MEDIA_KIND_IMAGE, data=file.getvalue())
    item = MediaItem(content_key(media), image.image_grid(side, side), media, "warm-up")
    packed = loader.pack([loader.prepare(item)])
    errors = [error for error in packed.errors if error is not None]
    if errors:
        raise errors[0]
    engine.encode(packed.on_current_stream(), [item.grid])
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
