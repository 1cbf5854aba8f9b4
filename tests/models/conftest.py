"""Small random checkpoints, written by transformers, for the tests of the model."""

from pathlib import Path

import pytest
import torch
from tiny_qwen import tiny_config
from transformers import Qwen2_5_VLForConditionalGeneration


def tiny_reference(tie: bool = True) -> Qwen2_5_VLForConditionalGeneration:
    """A model whose biases and norms differ from their neutral values, so that leaving one out shows."""
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(tiny_config(tie=tie)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            is_matrix = parameter.ndim > 1
            parameter.copy_(torch.randn_like(parameter) * (0.15 if is_matrix else 0.3) + (0.0 if is_matrix else 0.8))
    return model


@pytest.fixture(scope="session")
def reference() -> Qwen2_5_VLForConditionalGeneration:
    return tiny_reference()


@pytest.fixture(scope="session")
def checkpoint(reference: Qwen2_5_VLForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "model"
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sharded_checkpoint(reference: Qwen2_5_VLForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "model"
    reference.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def untied_checkpoint(tmp_path: Path) -> tuple[Path, Qwen2_5_VLForConditionalGeneration]:
    model = tiny_reference(tie=False)
    model.save_pretrained(tmp_path / "untied")
    return tmp_path / "untied", model
