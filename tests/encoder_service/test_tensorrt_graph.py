"""The exported graph against the torch tower, run by onnxruntime on the CPU."""

from pathlib import Path

import pytest
import torch
from tensorrt_samples import CPU, GRIDS, OnnxRuntimeRunner, random_patches, write_wide_checkpoint

from encoder_service.engines.tensorrt.tables import PADDING_BIAS, graph_inputs, padded_segments, window_length
from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.checkpoint import half_of_checkpoint
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision import Segments, VisionTower
from triptych.models.qwen2_5_vl.vision.layout import LayoutCache
from triptych.models.qwen2_5_vl.weights import load_vision_tower
from triptych.models_folder import BUILT_IN_FOLDER

onnx = pytest.importorskip("onnx", reason="the optional package onnx is not installed")
pytest.importorskip("onnxruntime", reason="the optional package onnxruntime is not installed")


class ExportedTower:
    """One checkpoint's tower in torch and as one exported file."""

    def __init__(self, checkpoint: Path, folder: Path, precision: torch.dtype = torch.float32) -> None:
        from encoder_service.engines.tensorrt.export import export_vision_tower

        config = ModelConfig.from_folder(checkpoint)
        self.config = config.vision
        self.precision = precision
        self.tower: VisionTower = load_vision_tower(checkpoint, config, torch.float32, CPU)
        self.path = export_vision_tower(self.config, half_of_checkpoint(checkpoint, is_vision=True), precision, folder)
        self.runner = OnnxRuntimeRunner(self.path)
        self.layouts = LayoutCache(self.config, 4096)

    def encode(self, patches: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        return self.runner.run(graph_inputs(patches, grids, self.layouts, self.config, self.precision)).float()


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    write_wide_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def wide(wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedTower:
    return ExportedTower(wide_checkpoint, tmp_path_factory.mktemp("wide-graph"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ExportedTower:
    return ExportedTower(BUILT_IN_FOLDER, tmp_path_factory.mktemp("tiny-graph"))


@pytest.mark.parametrize("name", ["wide", "tiny"])
@pytest.mark.parametrize(
    "grids",
    [[grid] for grid in GRIDS[:5]] + [GRIDS, list(reversed(GRIDS)), [Grid(1, 26, 38), Grid(5, 4, 4)]],
    ids=lambda grids: "+".join(f"{grid.t}x{grid.h}x{grid.w}" for grid in grids),
)
@torch.inference_mode()
def test_one_file_equals_the_torch_tower_at_every_size(
    name: str, grids: list[Grid], request: pytest.FixtureRequest
) -> None:
    exported: ExportedTower = request.getfixturevalue(name)
    patches = random_patches(grids, seed=len(grids))
    expected = exported.tower(patches, grids)
    assert expected.abs().mean() > 0.05
    # The same numbers up to float32's rounding, whose size goes with that of the values.
    torch.testing.assert_close(exported.encode(patches, grids), expected, atol=1e-4, rtol=1e-5)


@torch.inference_mode()
def test_a_picture_does_not_see_its_neighbours(wide: ExportedTower) -> None:
    grids = [Grid(1, 10, 14), Grid(2, 8, 6)]
    patches = random_patches(grids)
    other = patches.clone()
    other[grids[0].num_patches :] = 100.0
    rows = grids[0].num_tokens(2)
    torch.testing.assert_close(
        wide.encode(other, grids)[:rows], wide.encode(patches, grids)[:rows], atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(wide.encode(other, grids)[rows:], wide.encode(patches, grids)[rows:], atol=1e-2)


@torch.inference_mode()
def test_float16_graph_is_near_the_float32_tower(wide_checkpoint: Path, tmp_path: Path) -> None:
    exported = ExportedTower(wide_checkpoint, tmp_path, torch.float16)
    patches = random_patches(GRIDS)
    expected = exported.tower(patches, GRIDS)
    error = (exported.encode(patches, GRIDS) - expected).norm() / expected.norm()
    assert 0 < error < 5e-3


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
def test_graph_holds_dynamic_sizes_and_no_dense_mask(
    wide_checkpoint: Path, tmp_path: Path, precision: torch.dtype
) -> None:
    from encoder_service.engines.tensorrt.export import export_vision_tower

    config = ModelConfig.from_folder(wide_checkpoint).vision
    tensors = half_of_checkpoint(wide_checkpoint, is_vision=True)
    path = export_vision_tower(config, tensors, precision, tmp_path)
    graph = onnx.load(path, load_external_data=False).graph
    for value in graph.input:
        names = [size.dim_param for size in value.type.tensor_type.shape.dim if size.dim_param]
        assert names and names.count("num_patches") <= 1, value.name
    # Weights stand beside the graph, whose own file must stay far below protobuf's 2 GiB for any tower.
    weight_bytes = sum(tensor.read().numel() * precision.itemsize for tensor in tensors.values())
    external = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert sum(int(entry.value) for t in external for entry in t.external_data if entry.key == "length") == weight_bytes
    assert path.stat().st_size < 200_000


def test_unfit_checkpoint_is_told_by_tensor(wide_checkpoint: Path, tmp_path: Path) -> None:
    from encoder_service.engines.tensorrt.export import export_vision_tower

    config = ModelConfig.from_folder(wide_checkpoint).vision
    tensors = dict(half_of_checkpoint(wide_checkpoint, is_vision=True))
    tensors["blocks.0.attn.proj.weight_scale"] = tensors.pop("blocks.1.mlp.up_proj.bias")
    tensors["merger.ln_q.weight"] = tensors["blocks.0.attn.qkv.weight"]
    with pytest.raises(ModelError) as raised:
        export_vision_tower(config, tensors, torch.float32, tmp_path)
    assert "missing: blocks.1.mlp.up_proj.bias" in raised.value.message
    assert "unexpected: blocks.0.attn.proj.weight_scale" in raised.value.message
    assert "of another shape: merger.ln_q.weight" in raised.value.message


def test_padded_segments_name_every_patch_once() -> None:
    import numpy as np

    padded = padded_segments(Segments.from_lengths(np.array([4, 1, 3]), CPU), 4, 8, torch.float32)
    assert padded.rows.tolist() == [[0, 1, 2, 3], [4, 0, 0, 0], [5, 6, 7, 0]]
    is_patch = padded.bias == 0
    assert is_patch.tolist() == [[True] * 4, [True, False, False, False], [True, True, True, False]]
    assert set(padded.bias[~is_patch].tolist()) == {PADDING_BIAS}
    assert padded.slots.tolist() == [0, 1, 2, 3, 4, 8, 9, 10]
    assert padded.rows.flatten()[padded.slots].tolist() == list(range(8))


def test_window_length_of_both_towers(wide: ExportedTower, tiny: ExportedTower) -> None:
    assert (window_length(wide.config), window_length(tiny.config)) == (64, 16)
