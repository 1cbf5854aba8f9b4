"""The checkpoint folder: every file but the weights is written from code, so it is the same each time."""

import json
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from tools.tiny_model import shape as shapes
from tools.tiny_model.shape import ModelShape
from tools.tiny_model.tokenizer import CHAT_TEMPLATE, build_tokenizer, tokenizer_config

ASSETS = Path(__file__).resolve().parents[2] / "triptych" / "assets" / "tiny"


def load_tokenizer(folder: Path = ASSETS) -> Tokenizer:
    """The shipped tokenizer where there is one (the weights depend on it), else a new one."""
    path = folder / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.exists() else build_tokenizer()


def write_folder(folder: Path, shape: ModelShape, tokenizer: Tokenizer) -> None:
    """Configuration, tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in {
        "config.json": shapes.model_config(shape),
        "generation_config.json": shapes.generation_config(),
        "preprocessor_config.json": shapes.image_processor_config(),
        "video_preprocessor_config.json": shapes.video_processor_config(),
        "tokenizer_config.json": tokenizer_config(),
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """`model.safetensors` under the names of a real checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
