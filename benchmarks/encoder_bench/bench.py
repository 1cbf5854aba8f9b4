"""What the rows of the encoder's benchmark share: the model of true shapes, its engine, and distinct pictures."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.model_folders import write_model_folder
from encoder_service.device_defaults import resolve_section
from encoder_service.engines import VisionEngine
from encoder_service.engines.torch import TorchVisionEngine
from encoder_service.items import MediaItem
from encoder_service.media.loader import LoaderSource, PatchLoader, make_patch_loader
from encoder_service.stage import EncoderStage, StageSettings
from encoder_service.tickets import ProducedTensors
from triptych.config import EncoderSection, LimitsSection, TransportSection
from triptych.media import content_key
from triptych.media.layout import MediaProcessing
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.weights import random_vision_tower
from triptych.v1 import common_pb2

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
    def section(self) -> EncoderSection:
        """The stage's defaults on this device."""
        return resolve_section(EncoderSection(), self.device)

    @cached_property
    def engine(self) -> VisionEngine:
        """Random weights at true shapes, on `device`, on fused kernels where the stage would choose them."""
        tower = random_vision_tower(self.config, self.dtype, self.device, seed=0)
        if self.device.type != "cuda":
            return TorchVisionEngine(tower)
        from encoder_service.engines.fused import FusedVisionEngine

        return FusedVisionEngine(tower, self.section.max_graph_patches)

    def make_loader(self) -> PatchLoader:
        """The caller closes it."""
        return make_patch_loader(LoaderSource(self.processing, self.device, self.dtype, self.section, self.limits))

    def make_stage(self, **section: object) -> EncoderStage:
        """A stage over the engine, still to be started; the caller closes it."""
        vision = self.config.vision
        produced = ProducedTensors(
            "encoder-bench", "random", self.dtype, vision.out_hidden_size, vision.spatial_merge_size, vision.patch_dim
        )
        settings = StageSettings(self.section.model_copy(update=section), self.limits, TransportSection())
        engine, loader = self.engine, self.make_loader()
        # The stage's streams do not wait for the one on which weights and tables were made.
        self.synchronize()
        return EncoderStage(settings, engine, loader, produced)

    def items(self, name: str, files: Sequence[bytes]) -> list[MediaItem]:
        """Pictures of a size as the router sends them."""
        medias = [common_pb2.Media(kind=common_pb2.MEDIA_KIND_IMAGE, data=data) for data in files]
        return [MediaItem(content_key(media), self.grid(name), media, "media") for media in medias]

    def grid(self, name: str) -> Grid:
        width, height = self.size(name)
        return self.processing.image.image_grid(height, width)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed_ms(self, work: Callable[[], object]) -> float:
        """Of the host's clock, until the device is done."""
        self.synchronize()
        started = time.perf_counter()
        work()
        self.synchronize()
        return (time.perf_counter() - started) * 1e3

    def size(self, name: str) -> tuple[int, int]:
        """Width and height in pixels of `720p` or `1080p`."""
        return (QUICK_SIZES if self.is_quick else FULL_SIZES)[name]

    def jpegs(self, name: str, count: int, first_seed: int = 0) -> list[bytes]:
        """Distinct pictures of a size, about as large as photographs are."""
        width, height = self.size(name)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            return list(threads.map(lambda seed: jpeg(width, height, seed), range(first_seed, first_seed + count)))


Measure = Callable[[EncoderBench], Measured]


def median(samples: Sequence[float]) -> float:
    return sorted(samples)[len(samples) // 2]


def with_comment(data: bytes, comment: str) -> bytes:
    """The JPEG file with a comment: other bytes, so another content, of the same pixels."""
    text = comment.encode()
    return data[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + data[2:]


def jpeg(width: int, height: int, seed: int) -> bytes:
    """A JPEG file with soft shapes and some grain, other ones for every seed."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize((width, height), 2)
    grain = random.integers(-12, 13, (height, width, 1), dtype=np.int16)
    pixels = np.clip(np.asarray(shapes, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
