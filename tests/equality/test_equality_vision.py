"""Embeddings within 1e-4 of transformers, float32: the tower alone and packed, and the encoder stage over files."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence

import pytest
import torch
from equality_cases import Case, Medium, Picture, Video
from equality_reference import Pixels, Reference
from PIL import Image
from torch import Tensor

from encoder_service.items import MediaItem
from encoder_service.loading import load_stage
from router.dispatch.preparation import Preparation
from triptych.config import DeploymentConfig
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision import VisionTower
from triptych.models.qwen2_5_vl.weights import load_vision_tower
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.v1 import inference_pb2

MAX_ERROR = 1e-4


@pytest.fixture(scope="module")
def media(cases: Sequence[Case]) -> list[Medium]:
    """Every picture and video of the set, once."""
    return list(dict.fromkeys(medium for case in cases for medium in case.media))


@pytest.fixture(scope="module")
def pixels(media: list[Medium], reference: Reference) -> list[Pixels]:
    return [reference.pixels(medium) for medium in media]


@pytest.fixture(scope="module")
def embeddings(media: list[Medium], reference: Reference) -> list[Tensor]:
    return [reference.embedding(medium) for medium in media]


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    config = ModelConfig.from_folder(BUILT_IN_FOLDER)
    return load_vision_tower(BUILT_IN_FOLDER, config, torch.float32, torch.device("cpu"))


def max_error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((our - their).abs().max()) for our, their in zip(ours, theirs, strict=True))


def test_the_set_has_many_shapes(media: list[Medium], pixels: list[Pixels], embeddings: list[Tensor]) -> None:
    grids = {item.grid for item in pixels}
    assert len([grid for grid in grids if grid[0] == 1 and grid[1] != grid[2]]) >= 15
    assert len([grid for grid in grids if grid[0] > 1]) >= 5
    assert any(isinstance(medium, Video) and medium.data for medium in media)
    # An error of 1e-4 would be small, and embeddings of different pictures are not alike.
    assert min(float(embedding.abs().mean()) for embedding in embeddings) > 0.05
    assert max_error([embeddings[0][:1]], [embeddings[1][:1]]) > 0.1


def test_alone(tower: VisionTower, pixels: list[Pixels], embeddings: list[Tensor]) -> None:
    ours = [tower(item.patches, [Grid(*item.grid)]) for item in pixels]
    assert max_error(ours, embeddings) < MAX_ERROR


def test_packed(tower: VisionTower, pixels: list[Pixels], embeddings: list[Tensor]) -> None:
    packed = tower(torch.cat([item.patches for item in pixels]), [Grid(*item.grid) for item in pixels])
    assert max_error(packed.split([item.num_tokens for item in pixels]), embeddings) < MAX_ERROR


async def test_encoder_stage_from_files(cases: Sequence[Case], media: list[Medium], embeddings: list[Tensor]) -> None:
    """Decoding, frame choice, patches, batching: all of the set at once, each in one batch with many others."""
    config = DeploymentConfig.from_sources(
        overrides={
            "model": {"dtype": "float32", "device": "cpu"},
            "stages": {"encoder": {"batch_wait_ms": 500.0, "cache_bytes": 0}},
        },
        environment={},
    )
    items = dict(zip([m for case in cases for m in case.media], _prepared_items(config, cases), strict=True))
    stage = await load_stage(config, "encoder-test")
    stage.start()
    try:
        results = await asyncio.gather(*(stage.embed([items[medium]]) for medium in media))
        assert max_error([result[0].tensor for result in results], embeddings) < MAX_ERROR
        assert max(result[0].batch_items for result in results) > 5
        assert stage.counters().encoded_items == len(media)
    finally:
        await stage.close()


def test_resized_pictures_come_within_rounding(reference: Reference, media: list[Medium]) -> None:
    """Both sides were given our patches of these pictures: they are those of transformers but for rounding."""
    resized = [medium for medium in media if isinstance(medium, Picture) and medium.is_resized]
    assert len(resized) >= 2
    for medium in resized:
        theirs, grid = reference.processed(Image.open(io.BytesIO(medium.data)))
        ours = reference.pixels(medium)
        assert ours.grid == grid
        assert float((ours.patches - theirs).abs().mean()) < 0.01


def _prepared_items(config: DeploymentConfig, cases: Sequence[Case]) -> list[MediaItem]:
    """What the router makes of the media of all cases, in order."""
    preparation = Preparation(config, "tiny", BUILT_IN_FOLDER)
    requests = [inference_pb2.GenerateRequest(messages=case.messages) for case in cases]
    return [
        MediaItem(item.content_key, Grid(item.grid.t, item.grid.h, item.grid.w), item.media, item.field)
        for request in requests
        for item in preparation.prepare_now(request).media
    ]
