"""mRoPE positions: exactly those of transformers, over generated prompts."""

import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLForConditionalGeneration

from triptych.errors import InvalidRequest
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid, MediaGrid
from triptych.models.qwen2_5_vl.rope import mrope_positions

sides = st.integers(1, 9).map(lambda cells: 2 * cells)
images = st.builds(lambda h, w: MediaGrid("image", Grid(1, h, w)), sides, sides)
videos = st.builds(
    lambda t, h, w, seconds: MediaGrid("video", Grid(t, h, w), seconds),
    st.integers(1, 12),
    sides,
    sides,
    st.one_of(st.sampled_from([0.5, 1.0, 2.0, 1 / 3, 0.1, 1.0666666]), st.floats(0.01, 12.0)),
)
# Text between media: at least one token each, as the vision_start and vision_end tokens always are.
prompts = st.tuples(st.lists(st.tuples(st.integers(1, 6), st.one_of(images, videos)), max_size=6), st.integers(0, 9))


@cache
def config_of(checkpoint: Path) -> ModelConfig:
    return ModelConfig.from_folder(checkpoint)


def tokens_of(parts: list[tuple[int, MediaGrid]], num_last: int, config: ModelConfig) -> list[int]:
    pads = {"image": config.image_token_id, "video": config.video_token_id}
    tokens: list[int] = []
    for num_text, item in parts:
        tokens += [1] * num_text + [pads[item.kind]] * item.grid.num_tokens(2)
    return tokens + [2] * num_last


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=prompts, tokens_per_second=st.sampled_from([2, 4, 25, 41]))
def test_equals_transformers(
    checkpoint: Path,
    reference: Qwen2_5_VLForConditionalGeneration,
    prompt: tuple[list[tuple[int, MediaGrid]], int],
    tokens_per_second: int,
) -> None:
    parts, num_last = prompt
    config = config_of(checkpoint)
    tokens = tokens_of(parts, num_last, config) or [1]
    media = [item for _, item in parts]
    grids = {kind: [item for item in media if item.kind == kind] for kind in ("image", "video")}
    as_tensor = {
        kind: torch.tensor([[item.grid.t, item.grid.h, item.grid.w] for item in items]) if items else None
        for kind, items in grids.items()
    }
    ids = torch.tensor(tokens)
    types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    vision = reference.model.config.vision_config
    before = vision.tokens_per_second
    vision.tokens_per_second = tokens_per_second
    try:
        expected, deltas = reference.model.get_rope_index(
            ids[None],
            mm_token_type_ids=types[None],
            image_grid_thw=as_tensor["image"],
            video_grid_thw=as_tensor["video"],
            second_per_grid_ts=torch.tensor([item.second_per_grid_t for item in grids["video"]]),
        )
    finally:
        vision.tokens_per_second = before
    positions, delta = mrope_positions(tokens, media, _with_tokens_per_second(config, tokens_per_second))
    assert positions.dtype == torch.int64
    assert torch.equal(positions, expected[:, 0])
    assert delta == deltas.item()


def _with_tokens_per_second(config: ModelConfig, tokens_per_second: int) -> ModelConfig:
    return replace(config, vision=replace(config.vision, tokens_per_second=tokens_per_second))


def test_positions_by_hand(checkpoint: Path) -> None:
    """Two text tokens, a picture of 2 x 3 cells, a text token, a video of two steps a second apart, a text token."""
    config = config_of(checkpoint)
    media = [MediaGrid("image", Grid(1, 4, 6)), MediaGrid("video", Grid(2, 2, 4), 1.25)]
    tokens = [1, 1, *[config.image_token_id] * 6, 1, *[config.video_token_id] * 4, 1]
    positions, delta = mrope_positions(tokens, media, config)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 8, 8, 8],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 6, 6, 8],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 6, 7, 8],
    ]
    assert delta == 9 - 14


def test_placeholders_must_match_the_media(checkpoint: Path) -> None:
    config = config_of(checkpoint)
    image, pad = MediaGrid("image", Grid(1, 4, 4)), config.image_token_id
    for tokens, media in [
        ([1, pad, pad, pad, 1], [image]),
        ([1, pad, pad, 1, pad, pad], [image]),
        ([1, *[config.video_token_id] * 4], [image]),
        ([1, *[pad] * 4, 1], []),
        ([1, *[pad] * 4, 1], [image, image]),
        ([], []),
    ]:
        with pytest.raises(InvalidRequest):
            mrope_positions(tokens, media, config)


def test_long_prompt_is_fast(checkpoint: Path) -> None:
    config = config_of(checkpoint)
    parts = [(40, MediaGrid("image", Grid(1, 48, 40))) for _ in range(40)]
    tokens = tokens_of(parts, 100, config)
    assert len(tokens) > 20_000
    media = [item for _, item in parts]
    started = time.perf_counter()
    mrope_positions(tokens, media, config)
    assert time.perf_counter() - started < 0.1
