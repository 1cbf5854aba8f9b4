"""Targets beside the latest results, as Markdown: `python -m benchmarks.report [--check] [--page] [--results FOLDER]`.

Results are the JSON files of FOLDER that have `rows`; of two that have the same row the later date counts. With
--check it exits 1 when a row misses its target or was never measured, and lists those rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.profile_page import render_profiles

_FOLDER = Path(__file__).parent
PAGE = _FOLDER.parent / "docs/performance.md"
HEAD = """# Performance

Medians on one NVIDIA H200, bfloat16, weights random at the true shapes of Qwen2.5-VL, each stage's engine alone where
a row says nothing else; raw samples in `benchmarks/results/`. The peers' figures and the floors are explained in
`benchmarks/targets.toml`. This page is written by `python -m benchmarks.report --page`; `--check` lists what falls
short.

"""


@dataclass(frozen=True)
class Target:
    """A row of targets.toml. peer and floor are None where nobody measured or derived one; target is None where nothing
    was asked for, and the row just informs. note: shown below the table."""

    id: str
    name: str
    unit: str
    better: str
    target: float | None = None
    peer: float | None = None
    floor: float | None = None
    peer_note: str = ""
    note: str = ""
    stage: str = "Language engine"

    def is_met(self, value: float) -> bool:
        if self.target is None:
            return True
        return value <= self.target if self.better == "lower" else value >= self.target


@dataclass(frozen=True)
class Result:
    median: float
    date: str
    details: Mapping[str, Any]


def read_targets(path: Path) -> list[Target]:
    return [Target(**row) for row in tomllib.loads(path.read_text())["row"]]


def latest_results(folder: Path) -> dict[str, Result]:
    """The newest result of each row id."""
    latest: dict[str, Result] = {}
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text())
        for row_id, row in report.get("rows", {}).items():
            result = Result(float(row["median"]), report["date"], row.get("details", {}))
            if row_id not in latest or latest[row_id].date < result.date:
                latest[row_id] = result
    return latest


def render(targets: list[Target], results: dict[str, Result]) -> str:
    """A table for each stage, in the order in which the stages come first among the targets."""
    stages = dict.fromkeys(target.stage for target in targets)
    tables = [_table([target for target in targets if target.stage == stage], results) for stage in stages]
    return "\n\n".join(f"## {stage}\n\n{table}" for stage, table in zip(stages, tables, strict=True))


def _table(targets: list[Target], results: dict[str, Result]) -> str:
    lines = ["| work | unit | vLLM 0.26 | floor | target | measured | |", "|---|---|---|---|---|---|---|"]
    for target in targets:
        result = results.get(target.id)
        measured = "-" if result is None else f"{_number(result.median)} ({result.date[:10]})"
        verdict = _verdict(target, result)
        peer = target.peer_note or _number(target.peer)
        bound = "<=" if target.better == "lower" else ">="
        lines.append(
            f"| {target.name} | {target.unit} | {peer} | {_number(target.floor)} "
            f"| {'-' if target.target is None else f'{bound} {_number(target.target)}'} | {measured} | {verdict} |"
        )
    notes = [f"- {target.name}: {target.note}" for target in targets if target.note]
    return "\n".join(lines + (["", *notes] if notes else []))


def _verdict(target: Target, result: Result | None) -> str:
    if result is None:
        return "not measured"
    if target.target is None:
        return ""
    return "reached" if target.is_met(result.median) else "short"


def shortfalls(targets: list[Target], results: dict[str, Result]) -> list[str]:
    """A line for each row that misses its target or has no result."""
    lines = []
    for target in targets:
        result = results.get(target.id)
        if target.target is None:
            continue
        if result is None:
            lines.append(f"{target.name}: never measured")
        elif not target.is_met(result.median):
            measured, wanted = _number(result.median), _number(target.target)
            lines.append(f"{target.name}: {measured} {target.unit}, the target is {wanted}")
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed or was never measured")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md")
    parser.add_argument("--results", type=Path, default=_FOLDER / "results")
    parser.add_argument("--targets", type=Path, default=_FOLDER / "targets.toml")
    arguments = parser.parse_args()
    targets, results = read_targets(arguments.targets), latest_results(arguments.results)
    page = "\n\n".join([render(targets, results), *render_profiles(results)])
    print(page)
    if arguments.page:
        PAGE.write_text(f"{HEAD}{page}\n", encoding="utf-8")
    missed = shortfalls(targets, results)
    if not arguments.check or not missed:
        return 0
    print("\n" + "\n".join(missed), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
