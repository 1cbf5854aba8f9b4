"""Loading one half of a checkpoint, refusing what does not fit, and naming checkpoints."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl import checkpoint as checkpoint_module
from triptych.models.qwen2_5_vl.attention import DenseCausalAttention
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.weights import (
    load_language_model,
    load_vision_tower,
    model_fingerprint,
    random_language_model,
    random_vision_tower,
)

CPU = torch.device("cpu")


def load_both(folder: Path) -> dict[str, Tensor]:
    config = ModelConfig.from_folder(folder)
    vision = load_vision_tower(folder, config, torch.float32, CPU).state_dict()
    language = load_language_model(folder, config, torch.float32, CPU).state_dict()
    return {f"visual.{name}": value for name, value in vision.items()} | language


def changed_copy(folder: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_sharded_equals_single(checkpoint: Path, sharded_checkpoint: Path) -> None:
    single, sharded = load_both(checkpoint), load_both(sharded_checkpoint)
    assert single.keys() == sharded.keys()
    assert all(torch.equal(single[name], sharded[name]) for name in single)


def test_names_of_transformers_5_in_memory(
    checkpoint: Path, reference: Qwen2_5_VLForConditionalGeneration, tmp_path: Path
) -> None:
    shutil.copy(checkpoint / "config.json", tmp_path)
    tensors = {name: value.clone() for name, value in reference.state_dict().items()}
    assert "model.language_model.norm.weight" in tensors
    assert "lm_head.weight" in tensors
    save_file(tensors, tmp_path / "model.safetensors")
    published, in_memory = load_both(checkpoint), load_both(tmp_path)
    assert all(torch.equal(published[name], in_memory[name]) for name in published)


def test_each_half_reads_its_own_tensors_alone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    class RecordingFile:
        def __init__(self, path: Path, **options: str) -> None:
            self.file = safe_open(path, **options)

        def keys(self) -> list[str]:
            return self.file.keys()

        def get_slice(self, name: str) -> object:
            return self.file.get_slice(name)

        def get_tensor(self, name: str) -> Tensor:
            names.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(checkpoint_module, "safe_open", RecordingFile)
    config = ModelConfig.from_folder(checkpoint)
    load_vision_tower(checkpoint, config, torch.float32, CPU)
    assert names
    assert all(name.startswith("visual.") for name in names)
    names.clear()
    model = load_language_model(checkpoint, config, torch.float32, CPU)
    assert names
    assert not any(name.startswith("visual.") for name in names)
    assert not any("visual" in name for name, _ in model.named_parameters())
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())


def test_missing_tensors_are_listed(checkpoint: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["visual.merger.ln_q.weight"], tensors["model.layers.1.self_attn.k_proj.bias"]

    folder = changed_copy(checkpoint, tmp_path / "model", change)
    config = ModelConfig.from_folder(folder)
    with pytest.raises(ModelError, match=r"missing: merger\.ln_q\.weight$"):
        load_vision_tower(folder, config, torch.float32, CPU)
    with pytest.raises(ModelError, match=r"missing: layers\.1\.self_attn\.k_proj\.bias$"):
        load_language_model(folder, config, torch.float32, CPU)


def test_unexpected_and_misshapen_tensors_are_listed(checkpoint: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)
        tensors["visual.blocks.0.norm3.weight"] = torch.zeros(2)
        tensors["model.layers.0.self_attn.v_proj.weight"] = torch.zeros(16, 47)

    folder = changed_copy(checkpoint, tmp_path / "model", change)
    config = ModelConfig.from_folder(folder)
    with pytest.raises(ModelError, match=r"unexpected: blocks\.0\.norm3\.weight$"):
        load_vision_tower(folder, config, torch.float32, CPU)
    with pytest.raises(ModelError, match=r"unexpected: layers\.9.*another shape: layers\.0\.self_attn\.qkv_proj"):
        load_language_model(folder, config, torch.float32, CPU)


def test_pickled_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n")
    with pytest.raises(ModelError, match="pickled"):
        load_vision_tower(tmp_path, ModelConfig.from_folder(tmp_path), torch.float32, CPU)


def test_damaged_and_misplaced_files_are_refused(checkpoint: Path, sharded_checkpoint: Path, tmp_path: Path) -> None:
    config = ModelConfig.from_folder(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "cut")
    with (tmp_path / "cut" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_vision_tower(tmp_path / "cut", config, torch.float32, CPU)
    with pytest.raises(ModelError, match="not a safetensors file"):
        model_fingerprint(tmp_path / "cut")

    shutil.copytree(sharded_checkpoint, tmp_path / "index")
    index = tmp_path / "index" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../model.safetensors", "b": "absent.safetensors"}}))
    with pytest.raises(ModelError, match=r"not in its folder: \.\./\.\./model\.safetensors, absent\.safetensors"):
        load_vision_tower(tmp_path / "index", config, torch.float32, CPU)


def test_fingerprint_follows_values_names_and_configuration(checkpoint: Path, tmp_path: Path) -> None:
    fingerprint = model_fingerprint(checkpoint)
    assert len(fingerprint) == 32
    shutil.copytree(checkpoint, tmp_path / "same")
    assert model_fingerprint(tmp_path / "same") == fingerprint

    def change_values(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] += 1

    def change_names(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm2.weight"] = tensors.pop("model.norm.weight")

    fingerprints = {fingerprint}
    fingerprints.add(model_fingerprint(changed_copy(checkpoint, tmp_path / "values", change_values)))
    fingerprints.add(model_fingerprint(changed_copy(checkpoint, tmp_path / "names", change_names)))
    config_file = tmp_path / "same" / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(config))  # another layout of the same fields
    assert model_fingerprint(tmp_path / "same") == fingerprint
    config_file.write_text(json.dumps(config | {"image_token_id": 99}))
    fingerprints.add(model_fingerprint(tmp_path / "same"))
    (tmp_path / "same" / "model.safetensors").unlink()
    fingerprints.add(model_fingerprint(tmp_path / "same"))
    assert len(fingerprints) == 5


def test_fingerprint_reads_a_bounded_part(checkpoint: Path, tmp_path: Path) -> None:
    """A file of 8 GB (sparse) takes no longer than a small one."""
    shutil.copy(checkpoint / "config.json", tmp_path)
    header = json.dumps({"a": {"dtype": "U8", "shape": [1 << 33], "data_offsets": [0, 1 << 33]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 33))
    started = time.perf_counter()
    model_fingerprint(tmp_path)
    assert time.perf_counter() - started < 0.5


def test_random_weights_keep_their_scale(checkpoint: Path) -> None:
    config = ModelConfig.from_folder(checkpoint)
    tower = random_vision_tower(config, torch.bfloat16, CPU, seed=3)
    model = random_language_model(config, torch.bfloat16, CPU, seed=3)
    grid = Grid(1, 8, 8)
    embeddings = tower(torch.randn(grid.num_patches, config.vision.patch_dim), [grid])
    assert embeddings.dtype == torch.bfloat16
    hidden = model(embeddings, torch.arange(16).expand(3, -1), DenseCausalAttention([16]))
    logits = model.logits(hidden)
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 10
    again = random_language_model(config, torch.bfloat16, CPU, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = random_language_model(config, torch.bfloat16, CPU, seed=4)
    assert not torch.equal(model.embed_tokens.weight, other.embed_tokens.weight)
