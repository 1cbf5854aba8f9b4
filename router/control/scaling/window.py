"""SlidingExtreme: the lowest or highest value of the last so many seconds, as an immutable value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SlidingExtreme:
    """Samples (time, value) that may yet become the extreme: values rise (lowest) or fall (highest) with time."""

    samples: tuple[tuple[float, float], ...] = ()

    def with_low(self, now_s: float, value: float, window_s: float) -> SlidingExtreme:
        """With a new sample; `extreme` of the result is the lowest of the last `window_s`."""
        kept = [sample for sample in self.samples if sample[0] >= now_s - window_s and sample[1] < value]
        return SlidingExtreme((*kept, (now_s, value)))

    def with_high(self, now_s: float, value: float, window_s: float) -> SlidingExtreme:
        """With a new sample; `extreme` of the result is the highest of the last `window_s`."""
        kept = [sample for sample in self.samples if sample[0] >= now_s - window_s and sample[1] > value]
        return SlidingExtreme((*kept, (now_s, value)))

    @property
    def extreme(self) -> float:
        return self.samples[0][1]
