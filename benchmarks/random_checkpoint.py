"""A checkpoint that can be served, of true Qwen2.5-VL shapes, with random weights and the small model's tokenizer.

`python -m benchmarks.random_checkpoint FOLDER [--size 3b]` writes FOLDER with safetensors of several gigabytes, on the
GPU where there is one. For measuring a whole system where no real checkpoint can be had.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.model_folders import TEXT_SHAPES, write_model_folder
from triptych.models_folder import BUILT_IN_FOLDER

_TOKENIZER_FILES = ("chat_template.json", "tokenizer.json", "tokenizer_config.json")
_PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "generation_config.json")
# Ids that the tokenizer decides; the small one has its own.
_TOKEN_IDS = (
    "bos_token_id",
    "eos_token_id",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)
MAX_PIXELS = 12_845_056


def write_random_checkpoint(folder: Path, size: str) -> Path:
    """Weights as `transformers` initializes them, in bfloat16."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokens = json.loads((BUILT_IN_FOLDER / "config.json").read_text())
    with tempfile.TemporaryDirectory() as shapes:
        path = write_model_folder(size, Path(shapes)) / "config.json"
        values = json.loads(path.read_text()) | {name: tokens[name] for name in _TOKEN_IDS if name in tokens}
        path.write_text(json.dumps(values))
        config = Qwen2_5_VLConfig.from_pretrained(shapes)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    for name in (*_TOKENIZER_FILES, *_PROCESSOR_FILES):
        if (BUILT_IN_FOLDER / name).is_file():
            shutil.copy(BUILT_IN_FOLDER / name, folder / name)
    _allow_large_pictures(folder / "preprocessor_config.json")
    return folder


def _allow_large_pictures(path: Path) -> None:
    """As in Qwen's own checkpoints: a 1080p picture is not shrunk."""
    values = json.loads(path.read_text())
    values |= {"max_pixels": MAX_PIXELS, "size": {"shortest_edge": values["min_pixels"], "longest_edge": MAX_PIXELS}}
    path.write_text(json.dumps(values, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="3b", choices=sorted(TEXT_SHAPES))
    arguments = parser.parse_args()
    print(write_random_checkpoint(arguments.folder, arguments.size))


if __name__ == "__main__":
    sys.exit(main())
