"""What encoding costs in either place, learned from the requests that were served."""

from __future__ import annotations

from collections import deque

from router.dispatch.encode_place import EncodeCosts
from router.dispatch.walk_record import WalkRecord

_SMOOTHING = 0.1  # weight of the newest request
# Of so many requests the tail is looked at, and not before there are so many.
_TAIL_WINDOW, _MIN_TAIL_SAMPLES = 512, 64
# Less than that would hedge for the sake of a scheduler's hiccup.
_MIN_HEDGE_S = 0.05


class EncodeCostMeter:
    """Running means. Starts from guesses of the right order for a GPU; the first measurement replaces its guess."""

    def __init__(self) -> None:
        self._encoder_s_per_patch = self._language_s_per_patch = 3e-6
        self._hop_s = 3e-3
        self._measured: set[str] = set()

    @property
    def costs(self) -> EncodeCosts:
        return EncodeCosts(self._encoder_s_per_patch, self._language_s_per_patch, self._hop_s)

    def note(self, record: WalkRecord, num_patches: int) -> None:
        """Learns from a walk that is over and encoded `num_patches`. What came from a cache says nothing."""
        if not num_patches:
            return
        encoders = {member.actor_id for member in record.placement.encoders}
        if not encoders:
            self._note_language(record.encode_s, num_patches)
        elif not any(result.is_cache_hit for result in record.encode_results):
            slowest_s = max((r.preprocess_s + r.encode_s for r in record.encode_results), default=0.0)
            self._note_encoder(slowest_s, num_patches / len(encoders))
            self._note_hop(record.encode_call_overhead_s + record.embedding_transfer_s)

    def _note_language(self, seconds: float, num_patches: float) -> None:
        if seconds > 0:
            self._language_s_per_patch = self._mean("language", self._language_s_per_patch, seconds / num_patches)

    def _note_encoder(self, seconds: float, num_patches: float) -> None:
        if seconds > 0:
            self._encoder_s_per_patch = self._mean("encoder", self._encoder_s_per_patch, seconds / num_patches)

    def _note_hop(self, seconds: float) -> None:
        self._hop_s = self._mean("hop", self._hop_s, seconds)

    def _mean(self, name: str, mean: float, value: float) -> float:
        if name not in self._measured:
            self._measured.add(name)
            return value
        return mean + _SMOOTHING * (value - mean)


class EncodeTail:
    """How slow the slowest in a hundred encode calls is, by patch: the newest requests that encoders worked for."""

    def __init__(self) -> None:
        self._s_per_patch: deque[float] = deque(maxlen=_TAIL_WINDOW)

    def note(self, record: WalkRecord, num_patches: int) -> None:
        if record.encode_results and num_patches and not any(result.is_cache_hit for result in record.encode_results):
            spent_s = record.encode_call_overhead_s + max(
                result.queue_s + result.preprocess_s + result.encode_s for result in record.encode_results
            )
            self._s_per_patch.append(spent_s / num_patches)

    def p99_s(self, num_patches: int) -> float | None:
        """For a request of that many patches; None as long as too little is known."""
        if len(self._s_per_patch) < _MIN_TAIL_SAMPLES:
            return None
        ordered = sorted(self._s_per_patch)
        return max(ordered[int(0.99 * (len(ordered) - 1))] * num_patches, _MIN_HEDGE_S)
