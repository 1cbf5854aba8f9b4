"""When requests are sent: an open loop that does not wait for answers."""

from __future__ import annotations

import math
from itertools import accumulate, repeat
from random import Random

from triptych.errors import ConfigurationError


def arrival_times(num_requests: int, rate: float, burstiness: float, random: Random) -> list[float]:
    """Seconds after the start at which each request is sent.

    Gaps are gamma distributed with shape `burstiness` and mean 1 / `rate`: 1 is a Poisson process, less is burstier,
    more is more even. An infinite rate sends all at once. Gaps are scaled so that the last request is sent at
    num_requests / rate, as `vllm bench serve` does: a short run offers the load that it says.
    """
    if not rate > 0:
        raise ConfigurationError(f"--request-rate is {rate}, expected more than 0, or inf", field="request_rate")
    if not burstiness > 0:
        raise ConfigurationError(f"--burstiness is {burstiness}, expected more than 0", field="burstiness")
    if math.isinf(rate):
        return list(repeat(0.0, num_requests))
    gaps = [random.gammavariate(burstiness, 1 / (rate * burstiness)) for _ in range(num_requests)]
    times = list(accumulate(gaps))
    scale = num_requests / rate / times[-1] if times else 1.0
    return [time * scale for time in times]
