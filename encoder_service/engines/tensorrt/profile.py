"""Which sizes an engine is built for: the optimisation profile, from three numbers of patches."""

from dataclasses import dataclass

from encoder_service.engines.tensorrt.tables import window_length, window_side
from triptych.config import TensorRTSection
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import VisionConfig

Dimensions = tuple[int, ...]

# More frames than this in one call gain nothing.
MAX_FRAMES = 64
# The largest tensor TensorRT takes, by its own message; the scores of full attention are the largest here.
MAX_TENSOR_ELEMENTS = 2**40
# Windows in a picture of the usual size beside the whole ones: about one cut off for eight.
OPT_WINDOW_SHARE = 9 / 8


@dataclass(frozen=True)
class SizeRange:
    """Of one dynamic dimension: the least, the one to be fast at, the most."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class EngineProfile:
    """What one call of the engine may hold. `frame_length` is the patches of the longest frame of a call."""

    patches: SizeRange
    cells: SizeRange
    windows: SizeRange
    frames: SizeRange
    frame_length: SizeRange

    def input_shapes(self, config: VisionConfig) -> dict[str, tuple[Dimensions, Dimensions, Dimensions]]:
        """The min, opt and max shape of every input of the graph."""
        fixed = {"patch_dim": config.patch_dim, "half": config.head_dim // 2, "window": window_length(config)}
        shapes = {
            "patches": (self.patches, fixed["patch_dim"]),
            "window_order": (self.cells,),
            "original_order": (self.cells,),
            "cos": (self.patches, fixed["half"]),
            "sin": (self.patches, fixed["half"]),
            "window_rows": (self.windows, fixed["window"]),
            "window_bias": (self.windows, fixed["window"]),
            "window_slots": (self.patches,),
            "frame_rows": (self.frames, self.frame_length),
            "frame_bias": (self.frames, self.frame_length),
            "frame_slots": (self.patches,),
        }
        return {name: (_at(shape, "min"), _at(shape, "opt"), _at(shape, "max")) for name, shape in shapes.items()}


def _at(shape: tuple[SizeRange | int, ...], bound: str) -> Dimensions:
    return tuple(getattr(size, bound) if isinstance(size, SizeRange) else size for size in shape)


def engine_profile(section: TensorRTSection, config: VisionConfig, largest_frame: int) -> EngineProfile:
    """The profile for the configured patches. `largest_frame`: most patches that one frame of the model can have.

    Raises ConfigurationError for numbers out of order, or an engine that could not take every picture.
    """
    cell = config.spatial_merge_size**2
    field = "stages.encoder.tensorrt.max_patches"
    max_patches = section.max_patches or largest_frame
    if max_patches < largest_frame:
        raise ConfigurationError(
            f"{field} is {max_patches}, but a picture of this model may have {largest_frame} patches: raise it (0 "
            f"takes what the model needs), or lower max_pixels in the model's preprocessor_config.json",
            field=field,
        )
    if not section.min_patches <= max_patches:
        raise ConfigurationError(
            f"stages.encoder.tensorrt.min_patches is {section.min_patches}, expected at most {max_patches}, the most "
            f"patches of a call",
            field="stages.encoder.tensorrt.min_patches",
        )
    # Patches come in whole cells.
    least = max(section.min_patches // cell, 1) * cell
    most = -(-max_patches // cell) * cell
    usual = min(max(section.opt_patches // cell * cell, least), most)
    # The most windows are in a frame one cell high, where each is a strip; corners may add two.
    max_windows = most // (window_side(config) * config.spatial_merge_size) + 2
    usual_windows = min(max(round(usual / window_length(config) * OPT_WINDOW_SHARE), 1), max_windows)
    # A call may need a blank frame beside its own.
    max_frames = min(max(MAX_TENSOR_ELEMENTS // (config.num_heads * most**2), 2), MAX_FRAMES)
    return EngineProfile(
        patches=SizeRange(least, usual, most),
        cells=SizeRange(least // cell, usual // cell, most // cell),
        windows=SizeRange(1, usual_windows, max_windows),
        frames=SizeRange(1, 1, max_frames),
        frame_length=SizeRange(cell, usual, most),
    )
