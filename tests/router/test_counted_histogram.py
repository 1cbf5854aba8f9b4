"""Several equal values at once count as if prometheus_client had been told each."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from router.api.counted_histogram import CountedHistogram

BUCKETS = (0.001, 0.01, 0.1)


def test_the_page_is_that_of_prometheus_own_histogram() -> None:
    one, other = CollectorRegistry(), CollectorRegistry()
    counted = CountedHistogram("triptych:itl", "Times.", "tiny", BUCKETS)
    one.register(counted)
    plain = Histogram("triptych:itl", "Times.", ["model_name"], buckets=BUCKETS, registry=other).labels("tiny")
    generator = random.Random(3)
    for value in [*BUCKETS, *(2.0**-k for k in range(12))]:
        count = generator.randint(0, 5)
        counted.observe(value, count)
        for _ in range(count):
            plain.observe(value)
    assert rows(one) == rows(other)


def rows(registry: CollectorRegistry) -> list[tuple[str, float]]:
    lines = generate_latest(registry).decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "_created" not in line]
    return [(name, round(float(value), 9)) for name, value in pairs]
