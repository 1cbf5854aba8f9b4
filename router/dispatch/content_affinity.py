"""Which encoder saw a picture last, and so has it in its embedding cache."""

from __future__ import annotations

from collections import OrderedDict

MAX_CONTENT_KEYS = 65_536  # about 10 MB of keys; a forgotten one costs a second encode, nothing more


class ContentAffinity:
    """Content key -> actor id, the least recently used forgotten first. An actor that left is recognized by its id."""

    def __init__(self, max_content_keys: int = MAX_CONTENT_KEYS) -> None:
        self._max_content_keys = max_content_keys
        self._actors: OrderedDict[str, str] = OrderedDict()

    def actor_of(self, content_key: str) -> str | None:
        """The actor that was given this content last."""
        return self._actors.get(content_key)

    def remember(self, content_key: str, actor_id: str) -> None:
        """Notes that an actor is given this content."""
        self._actors[content_key] = actor_id
        self._actors.move_to_end(content_key)
        if len(self._actors) > self._max_content_keys:
            self._actors.popitem(last=False)
