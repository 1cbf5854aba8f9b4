"""The layers that a configuration is merged from: file, environment, command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from triptych.errors import ConfigurationError

ENVIRONMENT_PREFIX = "TRIPTYCH_"
# What the commands that are clients read from the environment; no keys of the configuration.
CLIENT_VARIABLES = ("TRIPTYCH_TOKEN", "TRIPTYCH_AUTHORITY")


def read_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"configuration file {file}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"configuration file {file}: expected a mapping at the top, found {type(values).__name__}"
        )
    return values


def read_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each variable with its name, as a layer."""
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in CLIENT_VARIABLES:
            continue
        *path, leaf = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        try:
            nested: dict[str, Any] = {leaf: yaml.safe_load(text)}
        except yaml.YAMLError as error:
            raise ConfigurationError(f"environment variable {name}={text!r} is no YAML value: {error}") from None
        for part in reversed(path):
            nested = {part: nested}
        yield f"environment variable {name}", nested


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both_nested else value
    return merged
