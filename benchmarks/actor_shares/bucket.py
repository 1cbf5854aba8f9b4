"""ShareBucket: how much of a core one process may still use."""

from __future__ import annotations

# What is saved up while a process does nothing or waits for a core, in seconds of its share: enough that others on the
# machine cost it nothing for so long, too little for a head start after a rest.
_SAVED_S = 0.1


class ShareBucket:
    """Fills at `share` CPU-seconds a second, is emptied by what the process used, and may owe."""

    def __init__(self, share: float, now_s: float, used_s: float) -> None:
        """used_s: what the process had used before; that is not counted."""
        assert share > 0, "a share of nothing would stop the process for good"
        self._share = share
        self._now_s = now_s
        self._used_s = used_s
        self._left_s = 0.0

    def may_run(self, now_s: float, used_s: float) -> bool:
        """Whether there is something left, now that the process has used `used_s` of CPU time in its life."""
        self._left_s += self._share * (now_s - self._now_s) - (used_s - self._used_s)
        self._left_s = min(self._left_s, self._share * _SAVED_S)
        self._now_s, self._used_s = now_s, used_s
        return self._left_s > 0
