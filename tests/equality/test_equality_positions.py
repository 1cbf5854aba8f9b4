"""Prompts, grids, mRoPE ids and deltas: exactly those of transformers, for every prompt of the set."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from equality_cases import Case, Video
from equality_reference import Reference

from llm_service.prompt import MediaSpan, Prompt
from router.dispatch.preparation import Preparation
from router.dispatch.prepared_request import MediaItem, PreparedRequest
from triptych.config import DeploymentConfig
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid, MediaGrid
from triptych.models.qwen2_5_vl.rope import mrope_positions
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.v1 import common_pb2, inference_pb2


@pytest.fixture(scope="module")
def prepared(cases: tuple[Case, ...]) -> dict[str, PreparedRequest]:
    """What the router makes of each prompt, from headers alone."""
    preparation = Preparation(DeploymentConfig(), "tiny", BUILT_IN_FOLDER)
    return {case.name: preparation.prepare_now(inference_pb2.GenerateRequest(messages=case.messages)) for case in cases}


@pytest.fixture(scope="module")
def model_config() -> ModelConfig:
    return ModelConfig.from_folder(BUILT_IN_FOLDER)


def test_token_ids(cases: tuple[Case, ...], reference: Reference, prepared: dict[str, PreparedRequest]) -> None:
    assert {case.name: list(prepared[case.name].token_ids) for case in cases} == {
        case.name: reference.prompt(case) for case in cases
    }


def test_grids_and_seconds(cases: tuple[Case, ...], reference: Reference, prepared: dict[str, PreparedRequest]) -> None:
    seconds: set[float] = set()
    for case in cases:
        pixels = [reference.pixels(medium) for medium in case.media]
        items = prepared[case.name].media
        assert [(item.grid.t, item.grid.h, item.grid.w) for item in items] == [item.grid for item in pixels]
        assert [item.num_tokens for item in items] == [item.num_tokens for item in pixels]
        assert [item.second_per_grid_t for item in items] == [item.second_per_grid_t for item in pixels]
        seconds |= {item.second_per_grid_t for item in items}
    assert len([second for second in seconds if second % 1]) >= 4, "fractional second_per_grid_ts"


def test_positions_and_deltas(
    cases: tuple[Case, ...],
    reference: Reference,
    prepared: dict[str, PreparedRequest],
    model_config: ModelConfig,
) -> None:
    """`mrope_positions`, and the prompt that the engine builds from what the router sends."""
    deltas = set()
    for case in cases:
        request = prepared[case.name]
        expected, expected_delta = reference.positions(case)
        media = [MediaGrid(_kind(item), _grid(item), item.second_per_grid_t) for item in request.media]
        positions, delta = mrope_positions(request.token_ids, media, model_config)
        assert positions.dtype == expected.dtype == torch.int64
        assert torch.equal(positions, expected), case.name
        assert delta == expected_delta, case.name
        prompt = Prompt.build(request.token_ids, [_span(item) for item in request.media], model_config)
        assert np.array_equal(prompt.positions, expected.numpy()), case.name
        deltas.add(delta)
    assert len(deltas) > 10


def test_a_slow_video_reaches_past_the_text_behind_it(cases: tuple[Case, ...], reference: Reference) -> None:
    """The set holds the prompt where counting on from the last token and from the delta are not the same."""
    reaching = []
    for case in cases:
        positions, delta = reference.positions(case)
        if int(positions[0, -1]) + 1 != positions.shape[1] + delta:
            reaching.append(case)
    assert reaching
    assert all(isinstance(medium, Video) for case in reaching for medium in case.media)


def _kind(item: MediaItem) -> Literal["image", "video"]:
    return "image" if item.media.kind == common_pb2.MEDIA_KIND_IMAGE else "video"


def _grid(item: MediaItem) -> Grid:
    return Grid(item.grid.t, item.grid.h, item.grid.w)


def _span(item: MediaItem) -> MediaSpan:
    return MediaSpan(item.offset, item.num_tokens, _kind(item), _grid(item), item.content_key, item.second_per_grid_t)
