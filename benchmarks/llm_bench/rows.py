"""The rows of the benchmark: each measures one kind of work on a driven engine, and returns its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np

from benchmarks.llm_bench.driver import EngineDriver

MIXED_STREAMS = 64


@dataclass
class Measured:
    """samples: one a repetition, in the row's unit; the row's value is their median. details: whatever explains it."""

    samples: list[float]
    details: dict[str, object] = field(default_factory=dict)


Measure = Callable[[EngineDriver, int], Measured]


def decode_one(driver: EngineDriver, repeats: int) -> Measured:
    """Milliseconds a token of one sequence, 128 tokens in and 512 out, without its first token."""
    driver.run(driver.sequences(1, 128, 16))
    samples = []
    for _ in range(repeats):
        (sequence,) = driver.sequences(1, 128, 512)
        driver.run([sequence])
        stamps = driver.stamps[sequence]
        samples.append(1e3 * (stamps[-1] - stamps[0]) / (len(stamps) - 1))
    return Measured(samples)


def throughput(driver: EngineDriver, repeats: int, *, count: int, num_in: int, num_out: int) -> Measured:
    """Generated tokens a second, all requests added at once, prefill included."""
    driver.run(driver.sequences(count, num_in, 4))
    samples, decode_ms, first_ms = [], [], []
    for _ in range(repeats):
        sequences = driver.sequences(count, num_in, num_out)
        driver.host.launch_s.clear()
        driver.host.read_s.clear()
        started_s = min(driver.add(sequences), np.inf)
        driver.wait(lambda: all(len(driver.stamps[s]) >= num_out for s in sequences))  # noqa: B023
        ends = [driver.stamps[sequence][-1] for sequence in sequences]
        samples.append(count * num_out / (max(ends) - started_s))
        last_first = max(driver.stamps[sequence][0] for sequence in sequences)
        first_ms.append(1e3 * (last_first - started_s))
        decode_ms.append(1e3 * (max(ends) - last_first) / (num_out - 1))
    details = {"prefill_ms": float(np.median(first_ms)), "decode_step_ms": float(np.median(decode_ms))}
    return Measured(samples, details | driver.host.summary_ms())


def prefill(driver: EngineDriver, repeats: int, *, num_tokens: int) -> Measured:
    """Milliseconds from adding a prompt to its first token, alone."""
    driver.run(driver.sequences(1, num_tokens, 1))
    samples = [1e3 * driver.run(driver.sequences(1, num_tokens, 1)) for _ in range(repeats)]
    return Measured(samples, driver.host.summary_ms())


def prefill_beside_decodes(driver: EngineDriver, repeats: int) -> Measured:
    """99th percentile of the milliseconds between two tokens of a stream, over 64 streams, while a prompt of 20,000
    tokens is prefilled."""
    samples, details = [], {}
    for repeat in range(repeats + 1):
        streams = driver.sequences(MIXED_STREAMS, 128, 1_200)
        driver.add(streams)
        driver.wait(lambda: all(driver.stamps[stream] for stream in streams))  # noqa: B023
        driver.run(driver.sequences(1, 16, 8))  # all streams decode by now
        (prompt,) = driver.sequences(1, 20_000, 1)
        started_s = driver.add([prompt])
        driver.wait(lambda: bool(driver.stamps[prompt]))  # noqa: B023
        ended_s = driver.stamps[prompt][0]
        gaps = np.concatenate([_gaps(driver.stamps[stream], started_s, ended_s) for stream in streams])
        for stream in streams:
            driver.engine.abort(stream)
        if repeat == 0:
            continue  # kernels of these shapes were loaded
        samples.append(1e3 * float(np.percentile(gaps, 99)))
        longest = [_longest_gap(driver.stamps[stream], started_s, ended_s) for stream in streams]
        details = {
            "longest_gap_ms_and_when_ms": max(longest),
            "p50_ms": 1e3 * float(np.median(gaps)),
            "max_ms": 1e3 * float(gaps.max()),
            "prefill_ms": 1e3 * (ended_s - started_s),
            "num_gaps": len(gaps),
        }
    return Measured(samples, details)


def _gaps(stamps: list[float], started_s: float, ended_s: float) -> np.ndarray:
    """Seconds between tokens, of those gaps that end within the time given."""
    times = np.array(stamps)
    gaps = np.diff(times)
    return gaps[(times[1:] >= started_s) & (times[1:] <= ended_s)]


def _longest_gap(stamps: list[float], started_s: float, ended_s: float) -> tuple[float, float]:
    """Milliseconds of the longest gap, and when it ended after the prompt came."""
    times = np.array([stamp for stamp in stamps if stamp <= ended_s])
    gaps = np.where(times[1:] >= started_s, np.diff(times), 0.0)
    index = int(gaps.argmax())
    return 1e3 * float(gaps[index]), 1e3 * float(times[index + 1] - started_s)


ROWS: Mapping[str, Mapping[str, Measure]] = MappingProxyType(
    {
        "3b": {
            "decode_1": decode_one,
            "throughput_64x128x256": partial(throughput, count=64, num_in=128, num_out=256),
            "throughput_256x128x256": partial(throughput, count=256, num_in=128, num_out=256),
            "prefill_1400": partial(prefill, num_tokens=1_400),
            "prefill_21700": partial(prefill, num_tokens=21_700),
            "itl_p99_under_prefill": prefill_beside_decodes,
        },
        "7b": {
            "decode_1": decode_one,
            "throughput_128x512x256": partial(throughput, count=128, num_in=512, num_out=256),
            "prefill_1400": partial(prefill, num_tokens=1_400),
            "prefill_21700": partial(prefill, num_tokens=21_700),
            "itl_p99_under_prefill": prefill_beside_decodes,
        },
    }
)
