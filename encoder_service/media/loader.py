"""Patch loaders by name: what turns media bytes into patches on the engine's device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Protocol

import torch
from torch import Tensor

from encoder_service.items import MediaItem
from encoder_service.media.prepared import PreparedMedia
from triptych.config import EncoderSection, LimitsSection
from triptych.errors import ConfigurationError, TriptychError
from triptych.media.layout import MediaProcessing


@dataclass(frozen=True)
class PackedPatches:
    """The patches of a batch on the engine's device.

    `patches` [sum of num_patches of the items without an error, patch_dim], in the engine's dtype and the order of the
    items, without gaps. `errors` has one entry for each item that was given; an item with an error has no rows.
    `ready` is None where the patches are there already.
    """

    patches: Tensor
    errors: tuple[TriptychError | None, ...]
    ready: torch.cuda.Event | None

    def on_current_stream(self) -> Tensor:
        """The patches, for work that is enqueued on the caller's current stream: it will wait for them, and their
        memory is kept until it is done. Waits for nothing itself."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.patches.device)
            stream.wait_event(self.ready)
            self.patches.record_stream(stream)
        return self.patches


class PatchLoader(Protocol):
    """Media bytes to patches on the engine's device."""

    def prepare(self, item: MediaItem, given_up: Event | None = None) -> PreparedMedia:
        """On any media thread: checks the content key, the header and the grid, then decodes what the device does not.

        Nothing larger is decoded than was admitted. Raises InvalidRequest or RequestTooLarge naming the item's field,
        and Cancelled soon after `given_up` was set.
        """
        ...

    def pack(self, media: Sequence[PreparedMedia]) -> PackedPatches:
        """The patches of all items. All calls come from one thread. An item's error is its own: it is in the answer."""
        ...

    def close(self) -> None:
        """Gives threads back. Idempotent."""
        ...


@dataclass(frozen=True)
class LoaderSource:
    """What a loader is made from: the model's processing, the engine's device and dtype, and the settings."""

    processing: MediaProcessing
    device: torch.device
    dtype: torch.dtype
    section: EncoderSection
    limits: LimitsSection


MakeLoader = Callable[[LoaderSource], PatchLoader]


def loader_registry() -> Mapping[str, MakeLoader]:
    """Loaders by the name that stages.encoder.media gives."""
    from encoder_service.media.cpu import CpuPatchLoader
    from encoder_service.media.gpu import GpuPatchLoader

    def make_automatic(source: LoaderSource) -> PatchLoader:
        return (GpuPatchLoader if source.device.type == "cuda" else CpuPatchLoader).make(source)

    return {"auto": make_automatic, "cpu": CpuPatchLoader.make, "gpu": GpuPatchLoader.make}


def make_patch_loader(source: LoaderSource) -> PatchLoader:
    """The loader that stages.encoder.media names; ConfigurationError for an unknown one, or one that can't run here."""
    name, registry = source.section.media, loader_registry()
    if name not in registry:
        raise ConfigurationError(
            f"stages.encoder.media is {name!r}, expected one of {', '.join(sorted(registry))}",
            field="stages.encoder.media",
        )
    return registry[name](source)
