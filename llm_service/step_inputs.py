"""What the chunks of a step bring to its packed tensors, as host arrays."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_service.scheduler import Chunk
from llm_service.sequence import Sequence
from llm_service.upload import Array, FieldSpec


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


def token_specs(num_tokens: int) -> dict[str, FieldSpec]:
    """Fields of an upload. A token id below 0 is pending: it is row `sources` of what the step before sampled."""
    return {
        "token_ids": ((num_tokens,), torch.int64),
        "sources": ((num_tokens,), torch.int64),
        "positions": ((3, num_tokens), torch.int64),
        "slots": ((num_tokens,), torch.int64),
    }


def fill_decodes(chunks: Seq[Chunk], page_size: int, rows: Mapping[Sequence, int], host: Mapping[str, Array]) -> None:
    """Writes the first rows, one for each chunk of one token. rows: where pending tokens were sampled."""
    num = len(chunks)
    token_ids = [chunk.sequence.token_ids[chunk.start] for chunk in chunks]
    host["token_ids"][:num] = token_ids
    host["sources"][:num] = [
        rows[chunk.sequence] if token < 0 else 0 for chunk, token in zip(chunks, token_ids, strict=True)
    ]
    host["positions"][:, :num] = np.array([decode_position(chunk) for chunk in chunks], dtype=np.int64).reshape(-1, 3).T
    host["slots"][:num] = [decode_slot(chunk, page_size) for chunk in chunks]


def fill_prefills(chunks: Seq[Chunk], page_size: int, first_row: int, host: Mapping[str, Array]) -> None:
    """Writes the rows from `first_row` on, to the last."""
    host["sources"][first_row:] = 0
    for chunk in chunks:
        rows = slice(first_row, first_row + chunk.num_new_tokens)
        host["token_ids"][rows] = chunk.sequence.token_ids[chunk.start : chunk.end]
        host["positions"][:, rows] = chunk.sequence.positions(chunk.start, chunk.end)
        host["slots"][rows] = slots_of(chunk, page_size)
        first_row = rows.stop


def decode_slot(chunk: Chunk, page_size: int) -> int:
    """As `slots_of`, of a chunk of one token."""
    return chunk.block_table[chunk.start // page_size] * page_size + chunk.start % page_size


def decode_position(chunk: Chunk) -> tuple[int, ...]:
    """The mRoPE position of a chunk of one token."""
    sequence = chunk.sequence
    step = chunk.start - sequence.prompt.num_tokens + 1
    if step < 1:
        return tuple(sequence.prompt.positions[:, chunk.start].tolist())
    time, height, width = sequence.last_prompt_position
    return time + step, height + step, width + step
