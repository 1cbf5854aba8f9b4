"""The name of a full KV page for prefix reuse: a hash over everything its content depends on."""

from __future__ import annotations

import hashlib

import numpy as np

from llm_service.sequence import Sequence

DIGEST_BYTES = 32


def extend_page_hashes(sequence: Sequence, num_pages: int, page_size: int) -> list[bytes]:
    """The hashes of the first `num_pages` pages, which must be full of tokens; each is computed once a sequence."""
    hashes = sequence.page_hashes
    while len(hashes) < num_pages:
        start = len(hashes) * page_size
        hashes.append(_page_hash(hashes[-1] if hashes else b"", sequence, start, start + page_size))
    return hashes[:num_pages]


def _page_hash(previous: bytes, sequence: Sequence, start: int, end: int) -> bytes:
    """Chained over the page before it; then token ids, positions, and of each media span here its content and offset.

    Positions are part of it because they depend on more than the tokens: on the grid of a picture, the pace of a video.
    """
    assert end <= sequence.num_tokens
    digest = hashlib.blake2b(previous, digest_size=DIGEST_BYTES)
    digest.update(np.asarray(sequence.token_ids[start:end], dtype=np.int64).tobytes())
    digest.update(np.ascontiguousarray(sequence.positions(start, end)).tobytes())
    for span in sequence.prompt.media:
        if span.offset < end and start < span.end:
            key = span.content_key.encode()
            digest.update(len(key).to_bytes(8, "little") + key)
            digest.update((start - span.offset).to_bytes(8, "little", signed=True))
    return digest.digest()
