"""The engine around the graph: batches cut into calls and put together again. onnxruntime runs the calls."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorrt_samples import CPU, GRIDS, OnnxRuntimeRunner, random_patches, write_wide_checkpoint

from encoder_service.engines.tensorrt.calls import MAX_PADDED_SHARE, plan_calls
from encoder_service.engines.tensorrt.engine import TensorRTVisionEngine
from encoder_service.engines.tensorrt.profile import engine_profile
from encoder_service.engines.torch import TorchVisionEngine
from triptych.config import TensorRTSection
from triptych.errors import ConfigurationError, ModelError, RequestTooLarge
from triptych.models.qwen2_5_vl.checkpoint import half_of_checkpoint
from triptych.models.qwen2_5_vl.config import ModelConfig, VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.weights import load_vision_tower

PUBLISHED = VisionConfig(
    depth=32,
    hidden_size=1280,
    intermediate_size=3420,
    num_heads=16,
    in_channels=3,
    patch_size=14,
    temporal_patch_size=2,
    spatial_merge_size=2,
    window_size=112,
    fullatt_block_indexes=(7, 15, 23, 31),
    out_hidden_size=2048,
    tokens_per_second=2,
)


class Towers:
    """One checkpoint behind both engines."""

    def __init__(self, checkpoint: Path, graph_folder: Path) -> None:
        from encoder_service.engines.tensorrt.export import export_vision_tower

        config = ModelConfig.from_folder(checkpoint)
        self.config = config.vision
        self.torch = TorchVisionEngine(load_vision_tower(checkpoint, config, torch.float32, CPU))
        tensors = half_of_checkpoint(checkpoint, is_vision=True)
        self.runner = OnnxRuntimeRunner(export_vision_tower(self.config, tensors, torch.float32, graph_folder))

    def engine(self, largest_frame: int = 256, **section: int) -> TensorRTVisionEngine:
        self.runner.calls.clear()
        profile = engine_profile(TensorRTSection(**section), self.config, largest_frame)  # type: ignore[arg-type]
        return TensorRTVisionEngine(self.runner, self.config, profile, torch.float32, torch.float32, CPU)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    pytest.importorskip("onnx", reason="the optional package onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the optional package onnxruntime is not installed")
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    write_wide_checkpoint(checkpoint)
    return Towers(checkpoint, tmp_path_factory.mktemp("graph"))


def assert_equal_engines(towers: Towers, engine: TensorRTVisionEngine, grids: list[Grid]) -> None:
    patches = random_patches(grids)
    embeddings = engine.encode(patches, grids)
    expected = towers.torch.encode(patches, grids)
    assert [part.shape for part in embeddings] == [part.shape for part in expected]
    for part, of_torch in zip(embeddings, expected, strict=True):
        torch.testing.assert_close(part, of_torch, atol=1e-4, rtol=1e-5)


def test_a_batch_within_the_profile_is_one_call(towers: Towers) -> None:
    engine = towers.engine(max_patches=4096)
    assert_equal_engines(towers, engine, [Grid(1, 10, 14), Grid(1, 8, 10), Grid(2, 8, 8)])
    assert towers.runner.calls == [(4, 348)]


@pytest.mark.parametrize("max_patches", [140, 256, 512])
def test_a_batch_over_the_profile_is_cut_between_frames(towers: Towers, max_patches: int) -> None:
    engine = towers.engine(largest_frame=140, max_patches=max_patches)
    assert_equal_engines(towers, engine, [*GRIDS, Grid(9, 6, 6)])
    assert len(towers.runner.calls) > 1
    assert max(num_patches for _, num_patches in towers.runner.calls) <= max_patches


def test_a_call_below_the_profile_is_filled_up(towers: Towers) -> None:
    engine = towers.engine(min_patches=64)
    assert_equal_engines(towers, engine, [Grid(1, 2, 6)])
    assert towers.runner.calls == [(2, 64)]


def test_embeddings_own_their_memory(towers: Towers) -> None:
    grids = [Grid(1, 4, 4), Grid(1, 4, 4)]
    parts = towers.engine().encode(random_patches(grids), grids)
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in parts)


def test_dtype_of_embeddings_is_the_stages(towers: Towers) -> None:
    profile = engine_profile(TensorRTSection(), towers.config, 256)
    engine = TensorRTVisionEngine(towers.runner, towers.config, profile, torch.float32, torch.bfloat16, CPU)
    assert engine.encode(random_patches([Grid(1, 4, 4)]), [Grid(1, 4, 4)])[0].dtype == torch.bfloat16


def test_weights_count_the_towers_parameters(towers: Towers) -> None:
    counted = towers.engine().weights()
    assert counted.num_visual_parameters == towers.torch.weights().num_visual_parameters
    assert counted.num_language_parameters == 0


def test_patches_of_other_grids_are_refused(towers: Towers) -> None:
    with pytest.raises(ModelError, match=r"\(16, 1176\), expected \(24, 1176\)"):
        towers.engine().encode(random_patches([Grid(1, 4, 4)]), [Grid(1, 4, 6)])


def test_a_frame_over_the_profile_names_the_setting() -> None:
    profile = engine_profile(TensorRTSection(), PUBLISHED, 256)
    with pytest.raises(RequestTooLarge, match=r"20 x 20 patches.*at most 256 .stages\.encoder\.tensorrt\.max_patches"):
        plan_calls([Grid(1, 4, 4), Grid(2, 20, 20)], profile, PUBLISHED)


def test_few_calls_hold_mixed_lengths_with_little_padding() -> None:
    profile = engine_profile(TensorRTSection(), PUBLISHED, 16_384)
    calls = plan_calls([Grid(1, 52, 92), *[Grid(1, 10, 10)] * 20], profile, PUBLISHED)
    assert [len(call) for call in calls] == [2, 19]


SIDES = st.integers(1, 12).map(lambda cells: 2 * cells)


@given(
    st.lists(st.builds(Grid, st.integers(1, 5), SIDES, SIDES), min_size=1, max_size=12),
    st.integers(576, 4000),
    st.integers(1, 576),
)
def test_every_frame_is_in_one_call_that_fits(grids: list[Grid], max_patches: int, min_patches: int) -> None:
    section = TensorRTSection(min_patches=min_patches, max_patches=max_patches)
    profile = engine_profile(section, PUBLISHED, 576)
    calls = plan_calls(grids, profile, PUBLISHED)
    starts = sorted((frame.start, frame.num_patches) for call in calls for frame in call)
    ends = [start + length for start, length in starts]
    assert [start for start, _ in starts] == [0, *ends[:-1]]
    assert ends[-1] == sum(grid.num_patches for grid in grids)
    for call in calls:
        lengths = [frame.num_patches for frame in call]
        windows = sum(-(-frame.height // 8) * -(-frame.width // 8) for frame in call)
        assert sum(lengths) <= profile.patches.max
        assert len(call) <= profile.frames.max
        assert windows <= profile.windows.max
        assert len(call) * max(lengths) <= MAX_PADDED_SHARE * sum(lengths)


@given(st.integers(1, 300), st.integers(1, 300))
def test_any_single_frame_fits_a_profile_made_for_its_size(rows: int, columns: int) -> None:
    grid = Grid(1, 2 * rows, 2 * columns)
    profile = engine_profile(TensorRTSection(), PUBLISHED, grid.num_patches)
    windows = -(-grid.h // 8) * -(-grid.w // 8)
    assert profile.windows.max >= windows and profile.patches.max >= grid.num_patches


@pytest.mark.parametrize("values", [{}, {"opt_patches": 1}, {"opt_patches": 10**6}, {"min_patches": 63}])
def test_profile_is_in_order_and_in_whole_cells(values: dict[str, int]) -> None:
    profile = engine_profile(TensorRTSection(**values), PUBLISHED, 16_384)  # type: ignore[arg-type]
    for least, usual, most in profile.input_shapes(PUBLISHED).values():
        assert all(0 < low <= middle <= high for low, middle, high in zip(least, usual, most, strict=True))
    assert profile.patches.min % 4 == profile.patches.opt % 4 == profile.patches.max % 4 == 0


def test_profile_that_cannot_take_every_picture_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"max_patches is 1000, but a picture .* 16384 patches") as raised:
        engine_profile(TensorRTSection(max_patches=1000), PUBLISHED, 16_384)
    assert raised.value.field == "stages.encoder.tensorrt.max_patches"


def test_minimum_over_the_maximum_is_refused() -> None:
    section = TensorRTSection(min_patches=2000, max_patches=1000)
    with pytest.raises(ConfigurationError, match=r"min_patches is 2000, expected at most 1000") as raised:
        engine_profile(section, PUBLISHED, 900)
    assert raised.value.field == "stages.encoder.tensorrt.min_patches"
