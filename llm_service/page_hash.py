"""The name of a full KV page for prefix reuse: a hash over everything its content depends on."""

from __future__ import annotations

import hashlib

import numpy as np

from llm_service.sequence import Sequence

DIGEST_BYTES = 32


def extend_page_hashes(sequence: Sequence, num_pages: int, page_size: int) -> list[bytes]:
    """The hashes of the first `num_pages` pages, which must be full of tokens; each is computed once a sequence.

    Chained over the page before it; then token ids, positions, and of each media span here its content and offset.
    Positions are part of it because they depend on more than the tokens: on the grid of a picture, the pace of a video.
    """
    hashes = sequence.page_hashes
    first = len(hashes) * page_size
    if len(hashes) >= num_pages:
        return hashes[:num_pages]
    assert num_pages * page_size <= sequence.num_tokens
    # A long prompt has thousands of pages, and streams wait meanwhile: arrays are made once for all of them.
    token_ids = np.array(sequence.token_ids[first : num_pages * page_size], dtype=np.int64).reshape(-1, page_size)
    positions = sequence.positions(first, num_pages * page_size).reshape(3, -1, page_size).transpose(1, 0, 2)
    contents = np.ascontiguousarray(np.concatenate([token_ids[:, None], positions], axis=1, dtype=np.int64))
    for index, content in enumerate(contents, start=len(hashes)):
        digest = hashlib.blake2b(hashes[-1] if hashes else b"", digest_size=DIGEST_BYTES)
        digest.update(content)
        _add_media(digest, sequence, index * page_size, (index + 1) * page_size)
        hashes.append(digest.digest())
    return hashes


def _add_media(digest: hashlib.blake2b, sequence: Sequence, start: int, end: int) -> None:
    for span in sequence.prompt.media:
        if span.offset < end and start < span.end:
            key = span.content_key.encode()
            digest.update(len(key).to_bytes(8, "little") + key)
            digest.update((start - span.offset).to_bytes(8, "little", signed=True))
