"""Which kernels the time of steps goes to, and what the linear layers alone would take: why a figure is what it is."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.llm_bench.driver import EngineDriver
from benchmarks.llm_bench.rows import Measured
from llm_service.sequence import Sequence

_BATCHES = (1, 64, 128)
_CONTEXT = 512
_WINDOW_S = 0.15
_NUM_KERNELS = 12
_NUM_ROWS = (64, 128, 1_024, 8_192)
_NUM_TIMED = 3


def profile_steps(driver: EngineDriver) -> Measured:
    """Microseconds and launches a step, by kernel: decode steps at contexts of about 512 tokens, a prompt of 1,400
    tokens, and the steps of one of 20,000 beside 64 streams. The profiler makes each kernel a little longer."""
    details: dict[str, object] = {f"decode {batch}": _profile_decodes(driver, batch) for batch in _BATCHES}
    details["prefill 1400"] = _profile_prompts(driver, 1_400, num_streams=0)
    details["prefill 20000 beside 64 streams"] = _profile_prompts(driver, 20_000, num_streams=64)
    return Measured([0.0], details)


def _profile_decodes(driver: EngineDriver, batch: int) -> dict[str, object]:
    streams = _flowing(driver, batch, _CONTEXT)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        num_steps = driver.engine.counters.num_steps
        time.sleep(_WINDOW_S)
        num_steps = driver.engine.counters.num_steps - num_steps
        torch.cuda.synchronize()
    _end(driver, streams)
    return _table(profiler, num_steps)


def _profile_prompts(driver: EngineDriver, num_tokens: int, num_streams: int) -> dict[str, object]:
    streams = _flowing(driver, num_streams, 128)
    prompts = driver.sequences(3 if not streams else 1, num_tokens, 1)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        num_steps = driver.engine.counters.num_steps
        for prompt in prompts:
            driver.run([prompt])
        num_steps = driver.engine.counters.num_steps - num_steps
        torch.cuda.synchronize()
    _end(driver, streams)
    return _table(profiler, num_steps)


def _flowing(driver: EngineDriver, count: int, num_tokens: int) -> list[Sequence]:
    """Sequences that all decode by now."""
    streams = driver.sequences(count, num_tokens, 1_000)
    driver.add(streams)
    driver.wait(lambda: all(driver.stamps[stream] for stream in streams))
    driver.run(driver.sequences(1, 16, 8))
    return streams


def _end(driver: EngineDriver, streams: list[Sequence]) -> None:
    for stream in streams:
        driver.engine.abort(stream)
    driver.run(driver.sequences(1, 16, 1))


def _table(profiler: profile, num_steps: int) -> dict[str, object]:
    """kernels: (name, launches a step, microseconds a step), the longest first. busy_us: of all kernels."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for item in profiler.key_averages():
        total = totals[_short(item.key)]
        total[0] += item.count
        total[1] += item.device_time_total
    steps = max(num_steps, 1)
    kernels = sorted(totals.items(), key=lambda entry: -entry[1][1])
    return {
        "num_steps": num_steps,
        "busy_us": round(sum(total[1] for total in totals.values()) / steps, 1),
        "kernels": [
            (name, round(count / steps, 1), round(microseconds / steps, 1))
            for name, (count, microseconds) in kernels[:_NUM_KERNELS]
        ],
    }


def _short(name: str) -> str:
    """Of cuBLAS one name for all tiles, of templates what stands before their arguments."""
    if name.startswith("nvjet"):
        return "cuBLAS linear (nvjet)"
    return name.removeprefix("void ").split("<")[0][:60]


def linear_rates(driver: EngineDriver) -> Measured:
    """For numbers of rows: microseconds of each linear layer, read through all layers so that no weight is in a cache,
    and milliseconds of all of them in a step. The last is a floor of the step, as far as cuBLAS goes."""
    model: Any = driver.engine.runner
    language = model.model.model
    weights: dict[str, list[Tensor]] = {
        "qkv": [layer.self_attn.qkv_proj.weight for layer in language.layers],
        "o": [layer.self_attn.o_proj.weight for layer in language.layers],
        "gate_up": [layer.mlp.gate_up_proj.weight for layer in language.layers],
        "down": [layer.mlp.down_proj.weight for layer in language.layers],
        "lm_head": [language.embed_tokens.weight if language.lm_head is None else language.lm_head.weight],
    }
    details: dict[str, object] = {}
    for num_rows in _NUM_ROWS:
        rates: dict[str, object] = {}
        total_ms = 0.0
        for name, group in weights.items():
            # Of a prompt one row is sampled.
            num_states = 128 if name == "lm_head" and num_rows > 128 else num_rows
            milliseconds = _time_linears(group, num_states)
            total_ms += milliseconds
            rates[name] = {
                "us": round(1e3 * milliseconds / len(group), 1),
                "weight_tb_per_s": round(sum(weight.nbytes for weight in group) / milliseconds / 1e9, 2),
                "tflop_per_s": round(2 * num_states * sum(weight.numel() for weight in group) / milliseconds / 1e9, 0),
            }
        details[f"{num_rows} rows"] = rates | {"all_ms": round(total_ms, 3)}
    return Measured([0.0], details)


@torch.inference_mode()
def _time_linears(weights: list[Tensor], num_rows: int) -> float:
    """Milliseconds of one linear after the other, replayed as a graph. Only for weights that are not quantized."""
    states = torch.randn((num_rows, weights[0].shape[1]), dtype=torch.bfloat16, device=weights[0].device)

    def compute() -> None:
        for weight in weights:
            F.linear(states, weight)

    compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(_NUM_TIMED):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / _NUM_TIMED
