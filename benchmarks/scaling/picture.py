"""A policy's decisions over the day, as lines in a terminal and as an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.scaling.simulation import STAGES, Allocation, Decision
from benchmarks.scaling.trace import DAY_S, Arrival
from router.control.membership import StageName

_BARS = " ▁▂▃▄▅▆▇█"


def counts_of(decisions: Sequence[Decision], stage: StageName) -> tuple[list[float], list[int]]:
    """Times in seconds and the count from each of them on."""
    own = [decision for decision in decisions if decision.stage is stage]
    return [decision.at_s for decision in own], [decision.target for decision in own]


def terminal_plot(decisions: Sequence[Decision], fixed: Allocation, end_s: float, width: int = 96) -> str:
    """A line of bars for each stage: the highest count wanted in each part of the day."""
    lines = []
    for stage in STAGES:
        times, counts = counts_of(decisions, stage)
        highest = max(counts)
        bars = []
        for column in range(width):
            begin, end = end_s * column / width, end_s * (column + 1) / width
            before = [count for time, count in zip(times, counts, strict=True) if time < begin][-1:]
            within = [count for time, count in zip(times, counts, strict=True) if begin <= time < end]
            bars.append(_BARS[round(max([*before, *within]) / highest * (len(_BARS) - 1))])
        lines.append(f"{stage:>8} {''.join(bars)} {min(counts)} to {highest}, fixed {fixed[stage]}")
    return "\n".join([*lines, f"{'':>8} 0 h{f'{end_s / 3_600:.0f} h':>{width - 3}}"])


def write_svg(
    path: Path, decisions: Sequence[Decision], fixed: Allocation, days: Sequence[Sequence[Arrival]], title: str
) -> None:
    """Arriving work on top, then each stage's wanted actors beside the fixed count."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "triptych"  # equal data, equal file
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(4, 1, figsize=(9, 8), sharex=True, constrained_layout=True)
    end_s = len(days) * DAY_S
    parts = int(end_s // 300)
    prompt, patches = [0.0] * parts, [0.0] * parts
    for number, arrivals in enumerate(days):
        for arrival in arrivals:
            part = int((number * DAY_S + arrival.at_s) // 300)
            prompt[part] += arrival.prompt_tokens / 300
            patches[part] += arrival.num_patches / 300
    hours = [part / 12 for part in range(parts)]
    axes[0].plot(hours, [value / 1e3 for value in prompt], label="1,000 prompt tokens/s", color="#4263a0")
    axes[0].plot(hours, [value / 1e3 for value in patches], label="1,000 patches/s", color="#c2662d")
    axes[0].set_title(title, fontsize=10)
    axes[0].legend(loc="upper left", fontsize=8)
    axes[0].set_ylabel("arriving work", fontsize=8)
    for axis, stage in zip(axes[1:], STAGES, strict=True):
        times, counts = counts_of(decisions, stage)
        axis.step([time / 3_600 for time in [*times, end_s]], [*counts, counts[-1]], where="post", color="#4263a0")
        axis.axhline(fixed[stage], color="#888888", linestyle="--", linewidth=1)
        axis.text(0.1, fixed[stage], "best fixed", fontsize=7, va="bottom", color="#555555")
        axis.set_ylabel(f"{stage} actors", fontsize=8)
        axis.set_ylim(0, max(*counts, fixed[stage]) * 1.2)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("hours (UTC)", fontsize=8)
    axes[-1].set_xlim(0, end_s / 3_600)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
