"""Rules of the house that a machine can check: which room may import which, and where Ray may stand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICES = {"encoder_service", "llm_service", "router"}
FILES = [
    path
    for room in ("triptych", "encoder_service", "llm_service", "router")
    for path in (ROOT / room).rglob("*.py")
    if "v1" not in path.parts
]


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path: Path) -> None:
    room, *inner = path.relative_to(ROOT).parts
    packages = imported_packages(path)
    if room != "router":
        assert not packages & (SERVICES - {room}), f"{room} imports another service"
    elif inner[0] != "control":
        assert not packages & (SERVICES - {"router"}), "the stages meet in router/control/ only"
    if "ray" in packages:
        assert path.name == "actor.py" or inner[:1] == ["control"], "Ray stands in */actor.py and router/control/ only"
    assert not packages & {"pickle", "cloudpickle", "marshal", "shelve"}, "nothing that crosses a process is pickled"
