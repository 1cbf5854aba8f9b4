"""The latest profiles of steps as Markdown: which kernels their time goes to, and what the linears alone would take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

_NUM_KERNELS = 6


class Detailed(Protocol):
    """A result with what explains it."""

    @property
    def date(self) -> str: ...

    @property
    def details(self) -> Mapping[str, Any]: ...


def render_profiles(results: Mapping[str, Detailed]) -> list[str]:
    """A section for each model that was profiled (`python -m benchmarks.llm_engine --profile`)."""
    sections = []
    for row_id in sorted(results):
        # Early profiles had no steps.
        is_known = "decode 1" in results[row_id].details
        if row_id.endswith(".profile") and is_known:
            model = row_id.removesuffix(".profile")
            sections.append(_render_steps(model, results[row_id]))
            rates = results.get(f"{model}.linear_rates")
            sections += [_render_rates(model, rates)] if rates else []
    return sections


def _render_steps(model: str, result: Detailed) -> str:
    lines = [
        f"## Where a step's time goes ({model}, {result.date[:10]})",
        "",
        "Microseconds of a step by kernel, under the profiler; kernels that wait for the one before them (PDL) are "
        "counted with their wait, so that the sum may exceed the step.",
        "",
        "| step | all kernels | the longest |",
        "|---|---|---|",
    ]
    for name, step in result.details.items():
        kernels = ", ".join(f"{kernel} {us:,.0f} ({count:g}x)" for kernel, count, us in step["kernels"][:_NUM_KERNELS])
        lines.append(f"| {name} | {step['busy_us']:,.0f} | {kernels} |")
    return "\n".join(lines)


def _render_rates(model: str, result: Detailed) -> str:
    names = ("qkv", "o", "gate_up", "down", "lm_head")
    lines = [
        f"### Linears alone ({model}, {result.date[:10]})",
        "",
        "Through cuBLAS, one after the other in a graph, every layer's own weight: microseconds, and TB/s of weights "
        "read or TFLOP/s, whichever binds; a prompt of more than 128 rows is taken to sample 128.",
        "",
        "| rows | " + " | ".join(names) + " | all layers, ms |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for rows, rates in result.details.items():
        cells = [_cell(rates[name]) for name in names]
        lines.append(f"| {rows.removesuffix(' rows')} | " + " | ".join(cells) + f" | {rates['all_ms']:.2f} |")
    return "\n".join(lines)


def _cell(rate: Mapping[str, float]) -> str:
    is_bound_by_memory = rate["weight_tb_per_s"] > 2.0
    unit = f"{rate['weight_tb_per_s']:.2f} TB/s" if is_bound_by_memory else f"{rate['tflop_per_s']:.0f} TFLOP/s"
    return f"{rate['us']:,.1f} ({unit})"
