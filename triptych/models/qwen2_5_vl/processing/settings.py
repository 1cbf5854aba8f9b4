"""Processing settings in a checkpoint folder, in the layouts that published checkpoints and transformers 5 have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.json_file import read_json_object

# transformers 5 nests all processors in this file; it goes before the others.
PROCESSOR_NAME = "processor_config.json"
IMAGE_NAME = "preprocessor_config.json"
VIDEO_NAME = "video_preprocessor_config.json"
# What a file that leaves them out means: the values of transformers' Qwen2-VL processors (CLIP's mean and deviation).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3


def read_settings(folder: Path, section: str, file_names: Sequence[str]) -> dict[str, Any]:
    """The settings named `section` in processor_config.json, or else the first of `file_names` that exists."""
    nested_file = folder / PROCESSOR_NAME
    if nested_file.is_file():
        nested = read_json_object(nested_file).get(section)
        if isinstance(nested, dict):
            return _checked(nested, nested_file)
    for name in file_names:
        if (folder / name).is_file():
            return _checked(read_json_object(folder / name), folder / name)
    raise ModelError(f"{folder} has no {section} settings, expected one of {[PROCESSOR_NAME, *file_names]}")


def patch_format_fields(settings: Mapping[str, Any], default_pixels: tuple[int, int]) -> dict[str, Any]:
    """The fields of `PatchFormat`. `default_pixels` are the limits (min, max) of a file that names none."""
    size = settings.get("size") or {}
    return {
        "min_pixels": _first(settings.get("min_pixels"), size.get("shortest_edge"), default_pixels[0]),
        "max_pixels": _first(settings.get("max_pixels"), size.get("longest_edge"), default_pixels[1]),
        "patch_size": int(settings.get("patch_size", 14)),
        "temporal_patch_size": int(settings.get("temporal_patch_size", 2)),
        "merge_size": int(settings.get("merge_size", 2)),
        "mean": tuple(settings.get("image_mean") or CLIP_MEAN),
        "std": tuple(settings.get("image_std") or CLIP_STD),
    }


def _first(*values: int | None) -> int:
    return next(int(value) for value in values if value is not None)


def _checked(settings: dict[str, Any], source: Path) -> dict[str, Any]:
    """Refuses steps that the processing here does not have, rather than answer with other pixels."""
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if settings.get(key) is False:
            raise ModelError(f"{source}: {key} is false, expected true")
    if settings.get("resample", BICUBIC) not in (BICUBIC, None):
        raise ModelError(f"{source}: resample is {settings['resample']}, expected {BICUBIC} (bicubic)")
    return settings
