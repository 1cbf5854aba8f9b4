"""From the configured model path to the checkpoint folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from triptych.config import BUILT_IN_MODEL
from triptych.errors import ModelError

BUILT_IN_FOLDER = Path(__file__).parent / "assets" / BUILT_IN_MODEL
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
_TOKENIZER_FILE = "tokenizer.json"
# Owner and model, as in Qwen/Qwen2.5-VL-3B-Instruct; no absolute, home or ./ path.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model_folder(path: str) -> Path:
    """The checkpoint folder that `model.path` names; 'tiny' is the small model inside the package.

    Raises ModelError saying which file is missing. Every process resolves for itself: in a cluster the package and
    the folder may lie elsewhere on another node.
    """
    folder = BUILT_IN_FOLDER if path == BUILT_IN_MODEL else Path(path).expanduser().resolve()
    problem = _missing(folder)
    if problem:
        hint = _hint(path, folder)
        raise ModelError(f"model.path={path!r}: {problem}{hint}", field="model.path")
    return folder


def model_name(path: str, name: str) -> str:
    """What clients may ask for: `model.name`, or the folder's own name when that is empty."""
    return name or (BUILT_IN_MODEL if path == BUILT_IN_MODEL else Path(path).expanduser().resolve().name)


def _missing(folder: Path) -> str:
    """What keeps `folder` from being a checkpoint; empty when nothing does."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if not (folder / "config.json").is_file():
        return f"{folder} has no config.json"
    if not any((folder / name).is_file() for name in _WEIGHT_FILES):
        return f"{folder} has neither {' nor '.join(_WEIGHT_FILES)}"
    if not (folder / _TOKENIZER_FILE).is_file():
        return f"{folder} has no {_TOKENIZER_FILE}"
    return ""


def _hint(path: str, folder: Path) -> str:
    if path == BUILT_IN_MODEL:
        return "; the package is incomplete: install triptych again"
    if _HUB_NAME.fullmatch(path) and not Path(path).exists():
        return f"; for a model of the Hugging Face hub download it first: hf download {path} --local-dir {folder.name}"
    return "; expected a Qwen2.5-VL checkpoint folder, or 'tiny' for the model in the package"
