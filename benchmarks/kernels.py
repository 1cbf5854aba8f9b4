"""Checks and times every kernel of `triptych.kernels` on one GPU: `python -m benchmarks.kernels --out FOLDER`.

Each section runs in a process of its own under a time limit, so that a kernel that hangs or breaks the GPU's context
costs its section alone. FOLDER/kernels.json holds versions, GPU, command, date, checks, errors and raw samples,
FOLDER/kernels.log what the sections printed; a short table comes last.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.kernel_bench.report import SectionReport

# In order, with the most seconds of each.
SECTIONS = {"checks": 90, "gemm": 100, "layer": 70, "attention": 80, "pointwise": 45}
TOTAL_S = 235.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--total-s", type=float, default=TOTAL_S, help="seconds after which no section goes on")
    parser.add_argument("--run-section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.run_section:
        _run_section(arguments.run_section, arguments.out)
        return 0
    report: dict[str, Any] = {
        "command": ["python", "-m", "benchmarks.kernels", *sys.argv[1:]],
        "date": datetime.datetime.now(datetime.UTC).isoformat(),
    }
    report |= {"statuses": {}, "environment": None, "sections": {}}
    with tempfile.TemporaryDirectory() as folder:
        _run_sections(arguments.sections, Path(folder), arguments.out, arguments.total_s, report)
    _print_table(report)
    return 0


def _run_sections(names: list[str], work: Path, out: Path, total_s: float, report: dict[str, Any]) -> None:
    """Runs sections one after the other, each with files in `work`, and writes what there is to `out` after each."""
    started = time.monotonic()
    log = ""
    for name in names:
        left_s = total_s - (time.monotonic() - started)
        section_started = time.monotonic()
        status = _start_section(name, work, min(SECTIONS[name], left_s)) if left_s > 10 else "no time left"
        report["statuses"][name] = f"{status}, {time.monotonic() - section_started:.0f} s"
        print(f"--- {name}: {report['statuses'][name]}", flush=True)
        section = _read(work / f"{name}.json")
        report["sections"][name] = section
        report["environment"] = report["environment"] or section.get("notes", {}).get("environment")
        (out / "kernels.json").write_text(json.dumps(report))
        if (work / f"{name}.log").exists():
            log += (work / f"{name}.log").read_text()
        (out / "kernels.log").write_text(log)


def _start_section(section: str, out: Path, limit_s: float) -> str:
    command = [sys.executable, "-m", "benchmarks.kernels", "--out", str(out), "--run-section", section]
    try:
        with (out / f"{section}.log").open("w") as log:
            code = subprocess.run(
                command, timeout=limit_s, stdout=log, stderr=subprocess.STDOUT, check=False
            ).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s"
    if code == 0:
        return "done"
    print((out / f"{section}.log").read_text()[-1500:], flush=True)
    return f"exit code {code}"


def _run_section(section: str, out: Path) -> None:
    import torch
    import triton

    from benchmarks.kernel_bench import attention, checks, gemm, layer, pointwise
    from benchmarks.kernel_bench.timing import warm_up_gpu

    report = SectionReport(section, out / f"{section}.json")
    properties = torch.cuda.get_device_properties(0)
    report.notes["environment"] = {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }
    report.save()
    torch.manual_seed(0)
    warm_up_gpu()
    with torch.inference_mode():
        pdl = section != "checks" and _can_use_pdl(report)
        if section == "checks":
            checks.run(report)
        elif section == "gemm":
            gemm.run(report, pdl)
        elif section == "layer":
            layer.run(report, pdl, _read(out / "gemm.json").get("notes", {}))
        elif section == "attention":
            attention.run(report, pdl)
        else:
            pointwise.run(report, pdl)
    report.save()


def _can_use_pdl(report: SectionReport) -> bool:
    """Whether programmatic dependent launches can be captured here and give the same as ordinary ones."""
    import torch

    from benchmarks.kernel_bench.shapes import EPS, randn
    from benchmarks.kernel_bench.timing import capture
    from triptych.kernels.norm import fused_add_rms_norm

    can = False
    with report.attempt("programmatic dependent launch"):
        states, weight = randn(64, 2048), randn(2048)
        sums = [torch.zeros_like(states), torch.zeros_like(states)]
        for total, pdl in zip(sums, (False, True), strict=True):
            calls = [lambda total=total, pdl=pdl: fused_add_rms_norm(states, total, weight, EPS, pdl=pdl)] * 8
            capture(calls).replay()
        can = torch.equal(*sums)
    report.notes["pdl"] = can
    return can


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return content


def _print_table(report: dict[str, Any]) -> None:
    """One line for each thing measured: floor, then the variants from the quickest; cuBLAS and torch always."""
    print(f"\n{report['environment']}\n{report['statuses']}")
    sections = report["sections"]
    checks = {label: error for section in sections.values() for label, error in section.get("checks", {}).items()}
    print(f"checks: {len(checks)}, largest relative error {max(checks.values(), default=0.0):.2g}")
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for section in sections.values():
        for row in section.get("rows", []):
            lines.setdefault((row["model"], row["name"]), []).append(row)
    print("us: floor | variants from the quickest")
    for (model, name), rows in lines.items():
        rows.sort(key=lambda row: row["median_us"])
        kept = [
            row for index, row in enumerate(rows) if index < 2 or row["variant"].startswith(("cublas", "torch", "bf16"))
        ]
        if name.startswith("layer"):
            kept = rows
        times = "  ".join(f"{row['variant']} {row['median_us']:.4g}" for row in kept)
        print(f"{model} {name:<16} {rows[0]['floor_us']:.4g} | {times}")
    steps = {key: value for key, value in sections.get("layer", {}).get("notes", {}).items() if key.startswith("step")}
    print("decode step, ms: " + "; ".join(f"{key[5:]} {value}" for key, value in steps.items()))
    for section, content in sections.items():
        for label, error in content.get("errors", {}).items():
            print(f"ERROR {section}: {label}: {' '.join(error.split())[:160]}")


if __name__ == "__main__":
    sys.exit(main())
