"""How frames are cut into the tiles of full attention, on the host; this file needs no Triton."""

import numpy as np
from numpy.typing import NDArray

# Rows of queries that a program of full attention takes.
TILE_ROWS = 128


def cumulative(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of the consecutive segments starts, and the end."""
    return np.concatenate(([0], np.cumsum(lengths)))


def frame_tiles(frame_lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """[num_tiles, 3]: for each TILE_ROWS rows of a frame, or what is left of them, where the frame starts, where they
    start, and where the frame ends. Tiles of long frames come first: they take longest."""
    starts = cumulative(frame_lengths)[:-1]
    by_length = np.argsort(-frame_lengths, kind="stable")
    starts, lengths = starts[by_length], frame_lengths[by_length]
    num_tiles = -(-lengths // TILE_ROWS)
    frame = np.repeat(np.arange(len(lengths)), num_tiles)
    tile_in_frame = np.arange(num_tiles.sum()) - np.repeat(cumulative(num_tiles)[:-1], num_tiles)
    return np.stack((starts[frame], starts[frame] + tile_in_frame * TILE_ROWS, starts[frame] + lengths[frame]), axis=1)
