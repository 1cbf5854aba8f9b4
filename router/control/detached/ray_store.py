"""RayStore: what is wanted, in the key-value store of the Ray cluster."""

from __future__ import annotations

import json
import logging

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from router.control.membership import StageName
from router.control.wanted_store import Wanted, WantedStore

logger = logging.getLogger(__name__)


class RayStore(WantedStore):
    """One entry for each Ray namespace; lives as long as the cluster's control store does."""

    def __init__(self, namespace: str) -> None:
        self._key = f"triptych:wanted:{namespace}".encode()
        self._saved: Wanted | None = None

    def load(self) -> Wanted | None:
        text = _internal_kv_get(self._key)
        if text is None:
            return None
        values = json.loads(text)
        actors = {stage: int(values["actors"][stage]) for stage in StageName}
        return Wanted(actors, frozenset(StageName(name) for name in values["pinned"]))

    def save(self, wanted: Wanted) -> None:
        if wanted == self._saved:
            return
        values = {"actors": dict(wanted.actors), "pinned": sorted(wanted.pinned)}
        _internal_kv_put(self._key, json.dumps(values).encode(), overwrite=True)
        self._saved = wanted

    def clear(self) -> None:
        """The deployment is ended: the next one begins with its configuration."""
        _internal_kv_del(self._key)
