"""A request after preparation: everything that the walk needs, decided before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from triptych.sampling import SamplingParameters
from triptych.v1 import common_pb2


@dataclass(frozen=True)
class MediaItem:
    """A picture or video, measured and placed in the prompt.

    `offset` and `num_tokens` are its placeholders in the prompt; `field` is where it stands in the client's request.
    """

    media: common_pb2.Media
    content_key: str
    grid: common_pb2.Grid
    second_per_grid_t: float
    offset: int
    num_tokens: int
    field: str

    @property
    def num_patches(self) -> int:
        """Patches that enter the vision tower."""
        return self.grid.t * self.grid.h * self.grid.w


@dataclass(frozen=True)
class PreparedRequest:
    """`sampling.max_tokens` fits the context length already; `prepare_s` is how long the preparation took.

    prefix_keys: of the prompt's beginning, block by block (see `cache_map.prefix_keys`).
    """

    request_id: str
    token_ids: tuple[int, ...]
    media: tuple[MediaItem, ...]
    sampling: SamplingParameters
    prepare_s: float
    prefix_keys: tuple[bytes, ...] = ()

    def of_choice(self, index: int) -> PreparedRequest:
        """The request for one of its n answers alone."""
        return replace(self, sampling=self.sampling.of_choice(index))

    @property
    def num_media_tokens(self) -> int:
        """Prompt tokens that stand for pictures and videos."""
        return sum(item.num_tokens for item in self.media)
