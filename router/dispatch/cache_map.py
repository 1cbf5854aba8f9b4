"""What the actors' caches probably hold, as far as this router filled them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from hashlib import blake2b

import numpy as np

from router.dispatch.prepared_request import MediaItem

# Tokens of a prompt's beginning that are told apart by one key: long enough that a long prompt has few keys, short
# enough that a system message of a few lines has one.
PREFIX_BLOCK_TOKENS = 64
_KEY_BYTES = 12


def prefix_keys(token_ids: Sequence[int], media: Sequence[MediaItem]) -> tuple[bytes, ...]:
    """A key for each full block of the prompt; each covers all before it, pictures by their content included.

    Two prompts have the first n keys in common exactly when their first n blocks would share KV pages.
    """
    tokens = np.asarray(token_ids, dtype=np.uint32)
    starts = [item.offset for item in media]
    keys, digest, next_item = [], b"", 0
    for end in range(PREFIX_BLOCK_TOKENS, len(tokens) + 1, PREFIX_BLOCK_TOKENS):
        block = blake2b(digest, digest_size=_KEY_BYTES)
        block.update(tokens[end - PREFIX_BLOCK_TOKENS : end].tobytes())
        while next_item < len(media) and starts[next_item] < end:
            block.update(media[next_item].content_key.encode())
            next_item += 1
        digest = block.digest()
        keys.append(digest)
    return tuple(keys)


class CacheMap:
    """For each actor the keys that it was given last, of as much cost in sum as its cache has room for.

    What other routers put there is not known, so a hit is likely, not sure. The least recently given are forgotten
    first.
    """

    def __init__(self) -> None:
        self._costs: dict[str, OrderedDict[object, int]] = {}
        self._sums: dict[str, int] = {}

    def holds(self, actor_id: str, key: object) -> bool:
        return key in self._costs.get(actor_id, ())

    def num_leading(self, actor_id: str, keys: Sequence[object]) -> int:
        """How many of `keys` from the first on the actor holds."""
        held = self._costs.get(actor_id, OrderedDict())
        return next((index for index, key in enumerate(keys) if key not in held), len(keys))

    def remember(self, actor_id: str, key: object, cost: int, room: int) -> None:
        """Notes that the actor is given this key now; `cost` and the cache's `room` in one unit."""
        held = self._costs.setdefault(actor_id, OrderedDict())
        total = self._sums.get(actor_id, 0) + cost - held.pop(key, 0)
        held[key] = cost
        while total > room and held:
            total -= held.popitem(last=False)[1]
        self._sums[actor_id] = total

    def retain(self, actor_ids: Collection[str]) -> None:
        """Forgets all other actors: an id that left never comes back."""
        for actor_id in self._costs.keys() - actor_ids:
            del self._costs[actor_id]
            del self._sums[actor_id]
