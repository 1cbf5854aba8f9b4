"""Writes docs/configuration.md from the schema in triptych/config/, so that the page can't say anything else.

python -m tools.configuration_page
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from triptych.config import ENVIRONMENT_PREFIX, DeploymentConfig

PAGE = Path(__file__).parents[1] / "docs/configuration.md"

HEAD = f"""# Configuration

One schema serves the YAML file (`triptych serve --config FILE`), the environment and the command line; the command
line wins over the environment, the environment over the file. In the environment a key is `{ENVIRONMENT_PREFIX}` and
its path in capitals, two underscores a level: `{ENVIRONMENT_PREFIX}STAGES__ENCODER__REPLICAS=2`. Unknown keys are
errors.
`mode: colocated` alone is a complete configuration: the stages that do not exist there get no replicas.

This page is written by `python -m tools.configuration_page` from `triptych/config/`.
"""


def page() -> str:
    """The whole page as Markdown."""
    sections = [f"## {path or 'top'}\n\n{_table(model)}" for path, model in _sections("", DeploymentConfig())]
    return HEAD + "\n" + "\n".join(sections)


def _sections(path: str, section: BaseModel) -> Iterator[tuple[str, BaseModel]]:
    if _leaves(section):
        yield path, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _sections(f"{path}.{name}".lstrip("."), value)


def _leaves(section: BaseModel) -> dict[str, FieldInfo]:
    fields = type(section).model_fields.items()
    return {name: field for name, field in fields if not isinstance(getattr(section, name), BaseModel)}


def _table(section: BaseModel) -> str:
    rows = [
        f"| `{name}` | `{_shown(getattr(section, name))}` | {(field.description or '').replace('|', chr(92) + '|')} |\n"
        for name, field in _leaves(section).items()
    ]
    return "| key | default | meaning |\n|---|---|---|\n" + "".join(rows)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return repr(value) if value == "" else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
