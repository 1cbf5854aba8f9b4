"""What the sections of the kernel benchmark write down, and the table made of it."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.kernel_bench.timing import median


@dataclass(frozen=True)
class Row:
    """One measurement. floor_us: bytes or operations over the rate assumed; 0 when there is none."""

    section: str
    model: str
    name: str
    variant: str
    median_us: float
    floor_us: float
    samples_us: list[float]


@dataclass
class SectionReport:
    """Rows, checks and errors of one section, written to a file after every one of them."""

    section: str
    path: Path
    rows: list[Row] = field(default_factory=list)
    checks: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)

    def add(self, model: str, name: str, variant: str, samples: Sequence[float], *, floor_us: float = 0.0) -> float:
        row = Row(self.section, model, name, variant, median(samples), floor_us, [round(s, 3) for s in samples])
        self.rows.append(row)
        print(f"{self.section} {model} {name} {variant}: {row.median_us:.1f} us (floor {floor_us:.1f})", flush=True)
        return row.median_us

    @contextmanager
    def attempt(self, label: str) -> Iterator[None]:
        """An error inside is written down under `label`, and the section goes on."""
        try:
            yield
        except Exception as error:
            self.errors[label] = f"{type(error).__name__}: {str(error).strip()[-600:]}"
            print(f"ERROR {label}: {self.errors[label]}", flush=True)
            traceback.print_exc(limit=4)
        self.save()

    def save(self) -> None:
        self.path.write_text(json.dumps(asdict(self), default=str))


def best_rows(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Of each (section, model, name) the row with the least time."""
    best: dict[tuple[object, ...], dict[str, object]] = {}
    for row in rows:
        key = (row["section"], row["model"], row["name"])
        if key not in best or float(str(row["median_us"])) < float(str(best[key]["median_us"])):
            best[key] = row
    return list(best.values())
