"""What the rows of the encoder's benchmark share: the model of true shapes, its engine, and distinct pictures."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.model_folders import write_model_folder
from encoder_service.engines.torch import TorchVisionEngine
from triptych.config import LimitsSection
from triptych.media.layout import MediaProcessing
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.weights import random_vision_tower

PREPROCESSOR = {
    "min_pixels": 56 * 56,
    "max_pixels": 28 * 28 * 16_384,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# Depth and picture sizes with which the whole benchmark runs on a CPU in seconds.
QUICK_DEPTH = 2
FULL_SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}
QUICK_SIZES = {"720p": (224, 140), "1080p": (280, 196)}
_JPEG_QUALITY = 90


@dataclass
class Measured:
    """samples: one a repetition, in the row's unit; the row's value is their median. details: whatever explains it."""

    samples: list[float]
    details: dict[str, object] = field(default_factory=dict)


@dataclass
class EncoderBench:
    """`folder` is filled with a configuration of the 3B shapes. With `is_quick` towers are shallow and pictures small.

    `notes` is what one row leaves for those after it: milliseconds of a step, the measured GEMM peak in FLOP/s.
    """

    folder: Path
    device: torch.device
    dtype: torch.dtype
    is_quick: bool
    repeats: int
    notes: dict[str, float] = field(default_factory=dict)
    limits: LimitsSection = field(default_factory=LimitsSection)

    def __post_init__(self) -> None:
        write_model_folder("3b", self.folder)
        if self.is_quick:
            path = self.folder / "config.json"
            config = json.loads(path.read_text())
            config["vision_config"] |= {"depth": QUICK_DEPTH, "fullatt_block_indexes": [QUICK_DEPTH - 1]}
            path.write_text(json.dumps(config))
        (self.folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))

    @cached_property
    def config(self) -> ModelConfig:
        return ModelConfig.from_folder(self.folder)

    @cached_property
    def processing(self) -> MediaProcessing:
        return MediaProcessing.from_folder(self.folder)

    @cached_property
    def engine(self) -> TorchVisionEngine:
        """Random weights at true shapes, on `device`."""
        return TorchVisionEngine(random_vision_tower(self.config, self.dtype, self.device, seed=0))

    def size(self, name: str) -> tuple[int, int]:
        """Width and height in pixels of `720p` or `1080p`."""
        return (QUICK_SIZES if self.is_quick else FULL_SIZES)[name]

    def jpegs(self, name: str, count: int, first_seed: int = 0) -> list[bytes]:
        """Distinct pictures of a size, about as large as photographs are."""
        width, height = self.size(name)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            return list(threads.map(lambda seed: jpeg(width, height, seed), range(first_seed, first_seed + count)))


Measure = Callable[[EncoderBench], Measured]


def jpeg(width: int, height: int, seed: int) -> bytes:
    """A JPEG file with soft shapes and some grain, other ones for every seed."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize((width, height), 2)
    grain = random.integers(-12, 13, (height, width, 1), dtype=np.int16)
    pixels = np.clip(np.asarray(shapes, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
