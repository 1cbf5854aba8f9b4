"""Targets beside the latest results, as Markdown: `python -m benchmarks.report [--check] [--page] [--results FOLDER]`.

Results are the JSON files of FOLDER that have `rows`; of two that have the same row the later date counts. With
--check it exits 1 when a row misses its target or was never measured, and lists those rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent
PAGE = _FOLDER.parent / "docs/performance.md"
HEAD = """# Performance

Medians on one NVIDIA H200, bfloat16, weights random at the true shapes of Qwen2.5-VL, the language engine alone; raw
samples in `benchmarks/results/`. The peer's figures and the floors are explained in `benchmarks/targets.toml`. This
page is written by `python -m benchmarks.report --page`; `--check` lists what falls short.

"""


@dataclass(frozen=True)
class Target:
    """A row of targets.toml. peer and floor are None where nobody measured or derived one."""

    id: str
    name: str
    unit: str
    better: str
    target: float
    peer: float | None = None
    floor: float | None = None
    peer_note: str = ""

    def is_met(self, value: float) -> bool:
        return value <= self.target if self.better == "lower" else value >= self.target


@dataclass(frozen=True)
class Result:
    median: float
    date: str


def read_targets(path: Path) -> list[Target]:
    return [Target(**row) for row in tomllib.loads(path.read_text())["row"]]


def latest_results(folder: Path) -> dict[str, Result]:
    """The newest result of each row id."""
    latest: dict[str, Result] = {}
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text())
        for row_id, row in report.get("rows", {}).items():
            result = Result(float(row["median"]), report["date"])
            if row_id not in latest or latest[row_id].date < result.date:
                latest[row_id] = result
    return latest


def render(targets: list[Target], results: dict[str, Result]) -> str:
    lines = ["| work | unit | vLLM 0.26 | floor | target | measured | |", "|---|---|---|---|---|---|---|"]
    for target in targets:
        result = results.get(target.id)
        measured = "-" if result is None else f"{_number(result.median)} ({result.date[:10]})"
        verdict = "not measured" if result is None else "reached" if target.is_met(result.median) else "short"
        peer = target.peer_note or _number(target.peer)
        bound = "<=" if target.better == "lower" else ">="
        lines.append(
            f"| {target.name} | {target.unit} | {peer} | {_number(target.floor)} | {bound} {_number(target.target)} "
            f"| {measured} | {verdict} |"
        )
    return "\n".join(lines)


def shortfalls(targets: list[Target], results: dict[str, Result]) -> list[str]:
    """A line for each row that misses its target or has no result."""
    lines = []
    for target in targets:
        result = results.get(target.id)
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
    table = render(targets, results)
    print(table)
    if arguments.page:
        PAGE.write_text(f"{HEAD}{table}\n", encoding="utf-8")
    missed = shortfalls(targets, results)
    if not arguments.check or not missed:
        return 0
    print("\n" + "\n".join(missed), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
