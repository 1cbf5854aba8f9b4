"""A short name for the weights of a checkpoint, the same on every host that has the same files."""

import hashlib
import json
import struct
from pathlib import Path

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.checkpoint import checkpoint_files
from triptych.models.qwen2_5_vl.json_file import read_json_object

CONFIG_NAMES = ("config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
# Files up to this size are read whole; of a larger one, that many samples spread evenly over it.
MAX_WHOLE_BYTES = 16 * 1024 * 1024
SAMPLES_PER_FILE = 16
SAMPLE_BYTES = 64 * 1024
# The format's own bound for the header.
MAX_HEADER_BYTES = 100 * 1000 * 1000


def model_fingerprint(folder: Path) -> str:
    """32 hexadecimal digits over the configuration, each tensor's name, shape and dtype, and the values.

    Small files are read whole, large ones in samples (MAX_WHOLE_BYTES), so this is quick for a checkpoint of any size.
    Two actors whose fingerprints differ do not exchange tensors.
    A folder with a configuration alone (random weights) has a fingerprint too.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in CONFIG_NAMES:
        if (folder / name).is_file():
            fields = read_json_object(folder / name)
            digest.update(json.dumps([name, fields], sort_keys=True).encode())
    for file in _weight_files(folder):
        _update_with_file(digest, file)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """Empty for a folder that has a configuration and no weights of any kind."""
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors*")):
        return []
    return checkpoint_files(folder)


def _update_with_file(digest: "hashlib.blake2b", path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < header_bytes <= min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"{path} is not a safetensors file: its header would have {header_bytes} bytes of {size}")
        digest.update(f"{path.name} {size} ".encode())
        digest.update(file.read(header_bytes))
        data_start = 8 + header_bytes
        if size <= MAX_WHOLE_BYTES:
            digest.update(file.read())
            return
        for offset in range(data_start, size, (size - data_start) // SAMPLES_PER_FILE):
            file.seek(offset)
            digest.update(file.read(SAMPLE_BYTES))
