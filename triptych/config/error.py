"""What is wrong with a configuration, in the words of who wrote it: the key, the value, and the layer it came from."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import GenericAlias
from typing import Any

from pydantic import BaseModel, ValidationError

from triptych.errors import ConfigurationError

# Keys from the top to the value, and where that value was written.
Path = tuple[str, ...]
Origins = Mapping[Path, str]


def origins_of(values: Mapping[str, Any], layer: str, prefix: Path = ()) -> dict[Path, str]:
    """Every value of a layer with the layer's name."""
    found: dict[Path, str] = {}
    for key, value in values.items():
        path = (*prefix, str(key))
        found |= origins_of(value, layer, path) if isinstance(value, Mapping) and value else {path: layer}
    return found


def configuration_error(error: ValidationError, schema: type[BaseModel], origins: Origins) -> ConfigurationError:
    """All that pydantic found, a clause for each key; `field` is the first one."""
    items = error.errors()
    clauses = []
    for item in items:
        path = tuple(str(part) for part in item["loc"])
        origin = _origin(path, origins)
        where = f" (from {origin})" if origin else ""
        key = ".".join(path) or "configuration"
        clauses.append(f"{key}{where}: {_complaint(item, path, schema)}")
    return ConfigurationError("; ".join(clauses), field=".".join(str(part) for part in items[0]["loc"]))


def _origin(path: Path, origins: Origins) -> str:
    """Where the value at `path`, or the nearest one above or below it, was written; the last layer wins."""
    if not path:
        return ""
    near = [name for other, name in origins.items() if other[: len(path)] == path or path[: len(other)] == other]
    return near[-1] if near else ""


def _complaint(item: Mapping[str, Any], path: Path, schema: type[BaseModel]) -> str:
    text = str(item["msg"])
    match item["type"]:
        case "extra_forbidden":
            return _unknown_key(path, schema)
        case "value_error":
            return text.removeprefix("Value error, ")
        case "model_type":
            return f"found {item['input']!r:.80}, expected a mapping of keys"
    expected = text.removeprefix("Input should be ").partition(", unable to")[0]
    return f"found {item['input']!r:.80}, expected {expected}"


def _unknown_key(path: Path, schema: type[BaseModel]) -> str:
    known = _keys_beside(path, schema)
    close = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"; did you mean {'.'.join((*path[:-1], close[0]))}?" if close else ""
    return f"unknown key, expected one of {', '.join(known)}{hint}"


def _keys_beside(path: Sequence[str], schema: type[BaseModel]) -> list[str]:
    for section in _sections(path[:-1], schema):
        schema = section
    return list(schema.model_fields)


def _sections(path: Sequence[str], schema: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for key in path:
        kind = schema.model_fields[key].annotation
        if isinstance(kind, GenericAlias) or not isinstance(kind, type) or not issubclass(kind, BaseModel):
            return
        schema = kind
        yield schema
