"""The loader that runs everywhere: Pillow, PyAV and torch on the media threads."""

from collections.abc import Sequence
from threading import Event

import torch

from encoder_service.items import MediaItem
from encoder_service.media.loader import LoaderSource, PackedPatches
from encoder_service.media.prepare import prepare_patches
from encoder_service.media.prepared import FinishedPatches, PreparedMedia
from triptych.config import LimitsSection
from triptych.media.layout import MediaProcessing


class CpuPatchLoader:
    """All work is done in `prepare`; `pack` moves the patches."""

    def __init__(
        self, processing: MediaProcessing, limits: LimitsSection, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._processing = processing
        self._limits = limits
        self._device = device
        self._dtype = dtype

    @classmethod
    def make(cls, source: LoaderSource) -> "CpuPatchLoader":
        return cls(source.processing, source.limits, source.device, source.dtype)

    def prepare(self, item: MediaItem, given_up: Event | None = None) -> PreparedMedia:
        patches = prepare_patches(item, self._processing, self._limits, given_up)
        patch_size = self._processing.image.patch_size
        resized = (item.grid.h * patch_size, item.grid.w * patch_size)
        return PreparedMedia(item.grid, item.field, resized, FinishedPatches(patches))

    def pack(self, media: Sequence[PreparedMedia]) -> PackedPatches:
        contents = [item.content for item in media]
        patches = [content.patches for content in contents if isinstance(content, FinishedPatches)]
        assert len(patches) == len(media), "media that another loader prepared"
        packed = torch.cat(patches) if len(patches) > 1 else patches[0]
        return PackedPatches(packed.to(device=self._device, dtype=self._dtype), (None,) * len(media), None)

    def close(self) -> None:
        """Holds nothing."""
