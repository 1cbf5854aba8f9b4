"""Frames of pictures and videos shared out over calls of the engine, so that each call fits its profile."""

from collections.abc import Sequence
from dataclasses import dataclass

from encoder_service.engines.tensorrt.profile import EngineProfile
from encoder_service.engines.tensorrt.tables import window_side
from triptych.errors import RequestTooLarge
from triptych.models.qwen2_5_vl.config import VisionConfig
from triptych.models.qwen2_5_vl.grid import Grid

# Full attention runs over frames padded to the longest: at most as much padding as patches.
MAX_PADDED_SHARE = 2


@dataclass(frozen=True)
class Frame:
    """One frame of the packed patches: of `height` x `width` patches, the first of them at `start`."""

    start: int
    height: int
    width: int

    @property
    def num_patches(self) -> int:
        return self.height * self.width

    @property
    def grid(self) -> Grid:
        return Grid(1, self.height, self.width)


def plan_calls(grids: Sequence[Grid], profile: EngineProfile, config: VisionConfig) -> list[list[Frame]]:
    """Every frame of `grids` in one call each; frames see nothing of one another, so a video may be cut between two.

    All in one call, and in their order, when that fits; else by length, so that little is padded.
    Raises RequestTooLarge for a frame over the profile's most.
    """
    frames = _frames(grids)
    largest = max(frames, key=lambda frame: frame.num_patches)
    if largest.num_patches > profile.patches.max:
        raise RequestTooLarge(
            f"a frame has {largest.height} x {largest.width} patches, but the TensorRT engine was built for at most "
            f"{profile.patches.max} (stages.encoder.tensorrt.max_patches)",
            field="stages.encoder.tensorrt.max_patches",
        )
    if _fits(frames, profile, config):
        return [frames]
    calls: list[list[Frame]] = []
    for frame in sorted(frames, key=lambda frame: -frame.num_patches):
        if calls and _fits([*calls[-1], frame], profile, config):
            calls[-1].append(frame)
        else:
            calls.append([frame])
    return calls


def _frames(grids: Sequence[Grid]) -> list[Frame]:
    frames, start = [], 0
    for grid in grids:
        for _ in range(grid.t):
            frames.append(Frame(start, grid.h, grid.w))
            start += grid.h * grid.w
    return frames


def _fits(frames: Sequence[Frame], profile: EngineProfile, config: VisionConfig) -> bool:
    num_patches = sum(frame.num_patches for frame in frames)
    padded = len(frames) * max(frame.num_patches for frame in frames)
    side = window_side(config)
    num_windows = sum(-(-frame.height // side) * -(-frame.width // side) for frame in frames)
    return (
        num_patches <= profile.patches.max
        and len(frames) <= profile.frames.max
        and num_windows <= profile.windows.max
        and padded <= MAX_PADDED_SHARE * num_patches
    )
