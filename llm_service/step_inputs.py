"""What a chunk brings to the packed tensors of a step, as host arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm_service.scheduler import Chunk


def slots_of(chunk: Chunk, page_size: int) -> NDArray[np.int64]:
    """Where the chunk's keys and values go: page * page_size + offset in the page, [num_new_tokens]."""
    tokens = np.arange(chunk.start, chunk.end, dtype=np.int64)
    pages = np.frombuffer(chunk.block_table, dtype=np.int32)
    slots: NDArray[np.int64] = pages[tokens // page_size].astype(np.int64) * page_size + tokens % page_size
    return slots


def lay_over_media(embeddings: Tensor, chunk: Chunk, first_row: int) -> None:
    """Replaces the rows of placeholders in embeddings [T, hidden], where the chunk begins at `first_row`."""
    for part in chunk.sequence.embedding_slices(chunk.start, chunk.end):
        start = first_row + part.offset
        rows = part.embedding[part.first_row : part.last_row]
        embeddings[start : start + len(rows)] = rows.to(embeddings)
