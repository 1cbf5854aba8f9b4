"""The prompt of a request as the engine wants it: token ids, media spans and mRoPE positions, all checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InvalidRequest
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid, MediaGrid
from triptych.models.qwen2_5_vl.rope import mrope_positions


@dataclass(frozen=True)
class MediaSpan:
    """The placeholder tokens [offset, offset + length) of a prompt that stand for one picture or video."""

    offset: int
    length: int
    kind: Literal["image", "video"]
    grid: Grid
    content_key: str
    second_per_grid_t: float = 0.0

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids, one for every embedding row, and where each stands: positions int64 [3, num_tokens].

    num_generated: how many of the last ones an earlier attempt at the same answer generated.
    """

    token_ids: tuple[int, ...]
    media: tuple[MediaSpan, ...]
    positions: NDArray[np.int64]
    num_generated: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @classmethod
    def build(
        cls, token_ids: Sequence[int], media: Sequence[MediaSpan], config: ModelConfig, num_generated: int = 0
    ) -> Prompt:
        """Checks and places a prompt, the last `num_generated` tokens of which an earlier attempt generated.

        Raises InvalidRequest, its field one of `prompt.*`.
        """
        num_given = len(token_ids) - num_generated
        if num_given < 1:
            raise InvalidRequest(
                f"the prompt has {len(token_ids)} tokens, {num_generated} of them generated: expected one more",
                field="prompt.token_ids",
            )
        _check_token_ids(token_ids, config)
        _check_spans(token_ids[:num_given], media, config)
        grids = [MediaGrid(span.kind, span.grid, span.second_per_grid_t) for span in media]
        given = mrope_positions(token_ids[:num_given], grids, config)[0].numpy()
        # Where the engine put them: one after the other, whatever their ids.
        generated = given[:, -1:] + np.arange(1, num_generated + 1)
        return cls(tuple(token_ids), tuple(media), np.concatenate([given, generated], axis=1), num_generated)


def _check_token_ids(token_ids: Sequence[int], config: ModelConfig) -> None:
    highest = max(token_ids)
    if highest >= config.text.vocab_size or min(token_ids) < 0:
        raise InvalidRequest(
            f"prompt.token_ids holds {highest}, expected ids below the vocabulary size {config.text.vocab_size}",
            field="prompt.token_ids",
        )


def _check_spans(token_ids: Sequence[int], media: Sequence[MediaSpan], config: ModelConfig) -> None:
    """Spans lie in order inside the prompt, over placeholders of their kind, as long as their grid says."""
    end_of_previous = 0
    for index, span in enumerate(media):
        field = f"prompt.media[{index}]"
        if span.offset < end_of_previous or span.end > len(token_ids):
            raise InvalidRequest(
                f"{field} spans tokens {span.offset} to {span.end}, expected a span after token {end_of_previous} "
                f"and inside the {len(token_ids)} tokens of the prompt",
                field=field,
            )
        num_tokens = span.grid.num_tokens(config.vision.spatial_merge_size)
        if span.length != num_tokens or num_tokens < 1:
            raise InvalidRequest(
                f"{field}.length is {span.length}, expected {num_tokens} tokens for the grid "
                f"{span.grid.t}x{span.grid.h}x{span.grid.w}",
                field=f"{field}.length",
            )
        placeholder = config.image_token_id if span.kind == "image" else config.video_token_id
        if any(token != placeholder for token in token_ids[span.offset : span.end]):
            raise InvalidRequest(
                f"{field} spans tokens that are not the {span.kind} placeholder {placeholder}", field=f"{field}.offset"
            )
        if not span.content_key:
            raise InvalidRequest(
                f"{field}.content_key is empty, expected the hash of the media", field=f"{field}.content_key"
            )
        end_of_previous = span.end
