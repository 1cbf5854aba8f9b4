"""Rotary positions of the language model (mRoPE): an index per axis for every token, and its cosines and sines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triptych.errors import InvalidRequest
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import MediaGrid


def mrope_positions(token_ids: Sequence[int], media: Sequence[MediaGrid], config: ModelConfig) -> tuple[Tensor, int]:
    """Positions [3, n] int64 (time, height, width) of a prompt's n tokens, and the delta of the tokens after it.

    Generated token i of the sequence (counted from 0, prompt included) has the position i + delta on all three axes.
    `media` is in prompt order; each item must meet its run of placeholder tokens, or InvalidRequest is raised.
    Equal to `Qwen2_5_VLModel.get_rope_index` of transformers 5.23: text counts up by one, a picture or video spans its
    merged grid from the position it starts at, and the text after it goes on at start + max(height, width). (5.17 cuts
    the seconds of a video's grid to whole ones, and so places most videos' frames otherwise.)
    """
    tokens = np.asarray(token_ids, dtype=np.int64)
    if tokens.ndim != 1 or tokens.size == 0:
        raise InvalidRequest("the prompt has no tokens, expected at least one", field="messages")
    is_placeholder = (tokens == config.image_token_id) | (tokens == config.video_token_id)
    placeholder_offsets = np.flatnonzero(is_placeholder)
    positions = np.empty((3, tokens.size), dtype=np.int64)
    merge = config.vision.spatial_merge_size

    cursor = 0  # the next token without a position
    next_position = 0
    num_placeholders_used = 0
    for index, item in enumerate(media):
        num_tokens = item.grid.num_tokens(merge)
        run = placeholder_offsets[num_placeholders_used : num_placeholders_used + num_tokens]
        _check_run(tokens, run, item, index, num_tokens, config)
        start, end = int(run[0]), int(run[-1]) + 1
        num_text = start - cursor
        positions[:, cursor:start] = np.arange(next_position, next_position + num_text)
        next_position += num_text
        positions[:, start:end] = next_position + _grid_positions(item, config)
        next_position += max(item.grid.h, item.grid.w) // merge
        cursor = end
        num_placeholders_used += num_tokens
    if num_placeholders_used != placeholder_offsets.size:
        raise InvalidRequest(
            f"the prompt has {placeholder_offsets.size} placeholder tokens, expected {num_placeholders_used} "
            f"for its {len(media)} pictures and videos",
            field="messages",
        )
    positions[:, cursor:] = np.arange(next_position, next_position + tokens.size - cursor)
    delta = int(positions.max()) + 1 - tokens.size
    return torch.from_numpy(positions), delta


def _check_run(
    tokens: np.ndarray, run: np.ndarray, item: MediaGrid, index: int, num_tokens: int, config: ModelConfig
) -> None:
    """The placeholders of one media item must be of its kind, as many as its grid, and without a gap."""
    token = config.image_token_id if item.kind == "image" else config.video_token_id
    is_unbroken = run.size == num_tokens > 0 and int(run[-1] - run[0]) == num_tokens - 1
    if is_unbroken and bool((tokens[run] == token).all()):
        return
    raise InvalidRequest(
        f"media[{index}] ({item.kind}, grid {item.grid.t}x{item.grid.h}x{item.grid.w}) needs {num_tokens} "
        f"consecutive placeholder tokens of id {token}, which the prompt does not have at its place",
        field=f"media[{index}]",
    )


def _grid_positions(item: MediaGrid, config: ModelConfig) -> np.ndarray:
    """Positions [3, tokens] inside one picture or video, each axis counted from 0."""
    merge = config.vision.spatial_merge_size
    grid_t, grid_h, grid_w = item.grid.t, item.grid.h // merge, item.grid.w // merge
    # float32, as in the reference: the product is cut to an integer, so its rounding is part of the result.
    interval = np.float32(1.0)
    if item.kind == "video":
        interval = np.float32(item.second_per_grid_t) * np.float32(config.vision.tokens_per_second)
    time = (np.arange(grid_t, dtype=np.float32) * interval).astype(np.int64)
    positions = np.empty((3, grid_t, grid_h, grid_w), dtype=np.int64)
    positions[0] = time[:, None, None]
    positions[1] = np.arange(grid_h)[None, :, None]
    positions[2] = np.arange(grid_w)[None, None, :]
    return positions.reshape(3, -1)


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of mRoPE, computed in float32 from the positions at hand; nothing is stored.

    `sections` says how many of the head_dim / 2 frequencies turn with time, height and width, in this order.
    """

    head_dim: int
    theta: float
    sections: tuple[int, int, int]

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """For positions [3, T]: cosines and sines, float32 [T, head_dim / 2]. Makes no host copy, so it can be
        part of a captured CUDA graph."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device) / self.head_dim
        per_axis = torch.split(1.0 / self.theta**exponents, list(self.sections))
        axis_positions = positions.to(torch.float32)[:, :, None]
        angles = torch.cat([axis_positions[axis] * frequencies for axis, frequencies in enumerate(per_axis)], dim=-1)
        return angles.cos(), angles.sin()


def full_width(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, head_dim / 2] as `apply_rotary` takes them, once for all layers: [T, 1, head_dim]."""
    return torch.cat((cos, cos), dim=-1)[:, None, :], torch.cat((-sin, sin), dim=-1)[:, None, :]


def apply_rotary(states: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotates `states` [T, heads, head_dim] by angles of `full_width`, pairing value i with i + head_dim / 2.

    Computed in float32 and returned in the dtype of `states`.
    """
    wide = states.float()
    partners = wide.roll(states.shape[-1] // 2, dims=-1)
    return torch.addcmul(wide * cos, partners, signed_sin).to(states.dtype)
