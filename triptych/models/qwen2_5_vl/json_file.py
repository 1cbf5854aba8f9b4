"""Reading the JSON files of a checkpoint folder, with errors that name the file and the key."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.errors import ModelError

# The largest file read here is the index of a sharded checkpoint: under 1 MB for the 72B model.
MAX_JSON_BYTES = 64 * 1024 * 1024


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in `path`. Raises ModelError when the file is missing, too large, or no JSON object."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist; the setting `model` must name a checkpoint folder that has it")
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ModelError(f"{path} has {size} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def required(fields: Mapping[str, Any], key: str, source: Path, prefix: str = "") -> Any:
    """`fields[key]`, or ModelError naming the key with its `prefix` (the path of keys that leads to it)."""
    value = fields.get(key)
    if value is None:
        raise ModelError(f"{source}: the key '{prefix}{key}' is missing")
    return value
