"""The shape of one picture or video, counted in patches."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, order=True)
class Grid:
    """`grid_thw`: temporal steps, rows and columns in patches. A picture has t == 1."""

    t: int
    h: int
    w: int

    @property
    def num_patches(self) -> int:
        """Patches that enter the vision tower."""
        return self.t * self.h * self.w

    def num_tokens(self, merge: int) -> int:
        """Embeddings that leave the tower, and placeholders in the prompt, for a spatial merge size of `merge`."""
        return self.t * (self.h // merge) * (self.w // merge)


@dataclass(frozen=True)
class MediaGrid:
    """One picture or video of a prompt, as far as its positions depend on it.

    `second_per_grid_t` is the time in seconds that one temporal step of a video covers; a picture's is not used.
    """

    kind: Literal["image", "video"]
    grid: Grid
    second_per_grid_t: float = 1.0
