"""CountedHistogram: a Prometheus histogram that takes several equal values at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import INF, floatToGoString


class CountedHistogram(Collector):
    """prometheus_client's own takes one value a call and looks through its buckets one by one, which is too slow for
    every token, and for the dozen figures of every request. Has one label, model_name. Lives on one event loop."""

    def __init__(self, name: str, text: str, model_name: str, buckets: Sequence[float]) -> None:
        """`buckets` are the upper ends, rising; one for all else is added."""
        self._name = name
        self._text = text
        self._model_name = model_name
        self._bounds = [*buckets, INF]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """`count` times `value`."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[Metric]:
        """What a page of metrics shows."""
        family = HistogramMetricFamily(self._name, self._text, labels=["model_name"])
        totals = accumulate(self._counts)
        family.add_metric(
            [self._model_name],
            [(_text_of(bound), total) for bound, total in zip(self._bounds, totals, strict=True)],
            self._sum,
        )
        yield family


def _text_of(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]
