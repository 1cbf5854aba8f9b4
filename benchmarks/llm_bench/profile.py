"""Which kernels the time of decode steps goes to."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from benchmarks.llm_bench.driver import EngineDriver
from benchmarks.llm_bench.rows import Measured

BATCHES = (1, 64, 256)
_NUM_TOKENS = 24
_NUM_KERNELS = 25


def profile_decodes(driver: EngineDriver) -> Measured:
    """For each batch: kernels by total microseconds over some steps at contexts of about 256 tokens."""
    details: dict[str, object] = {}
    for batch in BATCHES:
        driver.run(driver.sequences(batch, 240, 2))
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            driver.run(driver.sequences(batch, 240, _NUM_TOKENS))
        averages = sorted(profiler.key_averages(), key=lambda item: -item.device_time_total)
        details[f"batch_{batch}"] = [
            (item.key[:90], item.count, round(item.device_time_total, 1)) for item in averages[:_NUM_KERNELS]
        ]
    return Measured([0.0], details)
