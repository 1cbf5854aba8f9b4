"""The files of a checkpoint folder, and the tensors of one half of it by name.

Only safetensors are read, single or sharded; pickled weights (.bin, .pt) never are.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.json_file import read_json_object, required

INDEX_NAME = "model.safetensors.index.json"
VISION_PREFIX = "visual."
MAX_NAMES_IN_MESSAGE = 8


class CheckpointTensor:
    """One tensor of a checkpoint; its shape is known, its values are read when they are needed."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name
        self.shape = tuple(int(size) for size in file.get_slice(name).get_shape())

    def read(self) -> Tensor:
        """The values, on the host, in the dtype of the file."""
        tensor: Tensor = self._file.get_tensor(self._name)
        return tensor

    def read_part(self, dim: int, first: int, end: int) -> Tensor:
        """The values [first, end) of one dimension; no others are copied out of the file."""
        part: Tensor = self._file.get_slice(self._name)[(slice(None),) * dim + (slice(first, end),)]
        return part


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, sorted. Raises ModelError when there are none, or a shard is missing."""
    index = folder / INDEX_NAME
    if index.exists():
        names = {str(name) for name in required(read_json_object(index), "weight_map", index).values()}
        misplaced = sorted(name for name in names if Path(name).name != name or not (folder / name).is_file())
        if misplaced:
            raise ModelError(f"{index} names files that are not in its folder: {listed(misplaced)}")
        return sorted(folder / name for name in names)
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ModelError(f"{folder} has pickled weights only (.bin, .pt), which are never read; save it as safetensors")
    raise ModelError(f"{folder} has no *.safetensors file; the setting `model` must name a checkpoint folder")


def half_of_checkpoint(folder: Path, is_vision: bool) -> dict[str, CheckpointTensor]:
    """The tensors of the vision tower or of the language model, by their names without the half's prefix.

    Published files say `visual.*`, `model.*` and `lm_head.*`; transformers 5 in memory `model.visual.*` and
    `model.language_model.*`. Both are read.
    """
    tensors = {}
    for path in checkpoint_files(folder):
        try:
            file: Any = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
        names: list[str] = file.keys()
        for name in names:
            plain = name.removeprefix("model.").removeprefix("language_model.")
            if plain.startswith(VISION_PREFIX) == is_vision:
                tensors[plain.removeprefix(VISION_PREFIX)] = CheckpointTensor(file, name)
    return tensors


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    num_left = len(names) - MAX_NAMES_IN_MESSAGE
    return ", ".join(names[:MAX_NAMES_IN_MESSAGE]) + (f" and {num_left} more" if num_left > 0 else "")
