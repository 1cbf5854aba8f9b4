"""What the README names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("deploy/*/README.md"))]
ROOMS = (
    "examples",
    "deploy",
    "docs",
    "protos",
    "tools",
    "tests",
    "triptych",
    "encoder_service",
    "llm_service",
    "router",
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_on_a_page_exist(page: Path) -> None:
    named = re.findall(rf"(?<![\w/.-])((?:{'|'.join(ROOMS)})/[\w./-]*[\w/])", page.read_text(encoding="utf-8"))
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [path for path in linked if not (page.parent / path).exists()]
    assert not missing
