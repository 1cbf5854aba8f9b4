"""From a conversation to token ids, positions, patches and labels; and from many of them to one packed batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tools.tiny_model.conversations import Conversation, Medium, random_conversation
from tools.tiny_model.layout import FrameLayout, frame_layout, patchify
from tools.tiny_model.shape import CELL, MERGE, PATCH, ModelShape
from tools.tiny_model.tokenizer import token_id
from triptych.demo.pictures import COLOURS, SHAPE_KINDS, Scene, draw
from triptych.demo.questions import KINDS

Array = npt.NDArray[np.generic]
Batch = dict[str, Array]
# Classes of the dense loss: nothing, each coloured shape; cells with two centres count for neither.
NUM_CELL_CLASSES = 1 + len(COLOURS) * len(SHAPE_KINDS)
IGNORED_CELL = 255


@dataclass(slots=True)
class Sample:
    """One conversation as arrays. `position_ids` [3, tokens]; `answer_of` holds the index of each label's answer."""

    ids: list[int]
    position_ids: npt.NDArray[np.int64]
    vision_positions: list[int]
    label_positions: list[int]
    labels: list[int]
    answer_of: list[int]
    kinds: list[str]
    media: list[Medium]


class SampleEncoder:
    """Turns conversations into samples with one tokenizer; remembers the tokens of texts that it has seen."""

    def __init__(self, tokenizer: Tokenizer, shape: ModelShape) -> None:
        self._shape = shape
        self._tokens = lru_cache(maxsize=100_000)(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
        self._turn_start, self._turn_end = token_id("<|im_start|>"), token_id("<|im_end|>")
        self._vision_start, self._vision_end = token_id("<|vision_start|>"), token_id("<|vision_end|>")
        self._image_pad, self._video_pad = token_id("<|image_pad|>"), token_id("<|video_pad|>")

    def encode(self, conversation: Conversation, rng: Random) -> Sample:
        """The chat template's tokens; the answers with their end of turn are the labels."""
        sample = Sample([], np.zeros((3, 0), np.int64), [], [], [], [], [], conversation.media)
        builder = _PositionBuilder()
        self._text(sample, builder, [self._turn_start, *self._tokens(f"system\n{conversation.system}"), self._turn_end])
        for turn in conversation.turns:
            self._text(sample, builder, self._tokens("\n"))
            self._user_message(sample, builder, conversation.media, turn.parts, rng)
            self._text(sample, builder, [self._turn_end, *self._tokens("\n"), self._turn_start])
            self._text(sample, builder, self._tokens("assistant\n"))
            answer = [*self._tokens(turn.question.answer), self._turn_end]
            start = len(sample.ids)
            sample.label_positions += range(start - 1, start - 1 + len(answer))
            sample.labels += answer
            sample.answer_of += [len(sample.kinds)] * len(answer)
            sample.kinds.append(turn.question.kind)
            self._text(sample, builder, answer)
        sample.position_ids = builder.position_ids()
        return sample

    def _user_message(
        self,
        sample: Sample,
        builder: "_PositionBuilder",
        media: list[Medium],
        parts: tuple[str | int, ...],
        rng: Random,
    ) -> None:
        self._text(sample, builder, [self._turn_start])
        text = "user\n"
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            self._text(sample, builder, [*self._tokens(text), self._vision_start])
            text = ""
            self._medium(sample, builder, media[part], rng)
            self._text(sample, builder, [self._vision_end])
        if text:
            self._text(sample, builder, self._tokens(text))

    def _medium(self, sample: Sample, builder: "_PositionBuilder", medium: Medium, rng: Random) -> None:
        scene = medium.frames[0]
        rows, columns = scene.height // CELL, scene.width // CELL
        num_steps = max(1, len(medium.frames) // 2)
        num_tokens = num_steps * rows * columns
        sample.vision_positions += range(len(sample.ids), len(sample.ids) + num_tokens)
        sample.ids += [self._video_pad if medium.is_video else self._image_pad] * num_tokens
        if not medium.is_video:
            builder.vision(num_steps, rows, columns, interval=1.0, after_last=False)
            return
        # Any real second_per_grid_ts works because all of them are met here; transformers goes on after the longest
        # side, older versions and vLLM after the largest position.
        interval = rng.choice((1.0, 2.0)) if rng.random() < 0.5 else 2.0 ** rng.uniform(-2.0, 3.0)
        builder.vision(num_steps, rows, columns, interval, after_last=rng.random() < 0.5)

    @staticmethod
    def _text(sample: Sample, builder: "_PositionBuilder", ids: list[int]) -> None:
        sample.ids += ids
        builder.text(len(ids))


class _PositionBuilder:
    """mRoPE positions: text counts on by one, a medium spans (time, row, column)."""

    def __init__(self) -> None:
        self._axes: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._next = 0

    def text(self, length: int) -> None:
        for axis in self._axes:
            axis += range(self._next, self._next + length)
        self._next += length

    def vision(self, steps: int, rows: int, columns: int, interval: float, after_last: bool) -> None:
        times = (np.arange(steps) * interval).astype(np.int64)
        grid = np.empty((3, steps, rows, columns), np.int64)
        grid[0] = times[:, None, None]
        grid[1] = np.arange(rows)[:, None]
        grid[2] = np.arange(columns)
        for axis, values in zip(self._axes, (grid.reshape(3, -1) + self._next).tolist(), strict=True):
            axis += values
        longest = max(rows, columns)
        self._next += max(longest, int(times[-1]) + 1) if after_last else longest

    def position_ids(self) -> npt.NDArray[np.int64]:
        return np.array(self._axes, np.int64)


class BatchBuilder:
    """Packs samples into rows of a fixed length, with the patches of all their media in window order."""

    def __init__(
        self, encoder: SampleEncoder, shape: ModelShape, num_rows: int, row_length: int, max_patches: int
    ) -> None:
        self._encoder, self._shape = encoder, shape
        self._num_rows, self._row_length, self._max_patches = num_rows, row_length, max_patches

    def build(self, rng: Random) -> Batch:
        """A batch of fresh conversations that fills the rows."""
        return self.pack(self._fresh_samples(rng))

    def pack(self, samples: Iterator[Sample]) -> Batch:
        """First fit: stops at the first sample that fits no row, or that would exceed the patches of a batch."""
        rows, length = self._num_rows, self._row_length
        ids = np.full((rows, length), token_id("<|endoftext|>"), np.int16)
        owners = np.full((rows, length), -1, np.int16)
        position_ids = np.zeros((3, rows, length), np.int16)
        used = [0] * rows
        labels: list[int] = []
        kinds: list[int] = []
        label_positions: list[npt.NDArray[np.int64]] = []
        label_weights: list[npt.NDArray[np.float64]] = []
        answer_of: list[npt.NDArray[np.int64]] = []
        vision_positions: list[npt.NDArray[np.int64]] = []
        patches = _PatchCollector(self._shape)
        num_samples = 0
        for sample in samples:
            size = len(sample.ids)
            row = next((index for index in range(rows) if used[index] + size <= length), None)
            if row is None or patches.num_patches + _num_patches(sample) > self._max_patches:
                break
            start = used[row]
            used[row] += size
            ids[row, start : start + size] = sample.ids
            owners[row, start : start + size] = num_samples
            position_ids[:, row, start : start + size] = sample.position_ids
            offset = row * length + start
            vision_positions.append(np.array(sample.vision_positions, np.int64) + offset)
            label_positions.append(np.array(sample.label_positions, np.int64) + offset)
            labels += sample.labels
            lengths = np.bincount(sample.answer_of)
            label_weights.append(1.0 / np.sqrt(lengths[sample.answer_of]))
            answer_of.append(np.array(sample.answer_of) + len(kinds))
            kinds += [KINDS.index(kind) for kind in sample.kinds]
            for medium in sample.media:
                patches.add(medium)
            num_samples += 1
        return {
            "ids": ids,
            "owners": owners,
            "position_ids": position_ids,
            "vision_positions": np.concatenate(vision_positions).astype(np.int32),
            "label_positions": np.concatenate(label_positions).astype(np.int32),
            "labels": np.array(labels, np.int16),
            "label_weights": np.concatenate(label_weights).astype(np.float32),
            "answer_of": np.concatenate(answer_of).astype(np.int32),
            "kinds": np.array(kinds, np.int16),
            "num_samples": np.array([num_samples], np.int32),
            **patches.arrays(),
        }

    def _fresh_samples(self, rng: Random) -> Iterator[Sample]:
        while True:
            sample = self._encoder.encode(random_conversation(rng), rng)
            if len(sample.ids) <= self._row_length:
                yield sample


class _PatchCollector:
    """Patches of frames (uint8) and, for each vision token's patch, which two frames' patches it is made of."""

    def __init__(self, shape: ModelShape) -> None:
        self._window_cells = shape.window // CELL
        self.num_patches = 0
        self._num_frame_patches = 0
        self._num_cells = 0
        self._frames: list[npt.NDArray[np.uint8]] = []
        self._first: list[npt.NDArray[np.int64]] = []
        self._second: list[npt.NDArray[np.int64]] = []
        self._rows: list[npt.NDArray[np.int64]] = []
        self._columns: list[npt.NDArray[np.int64]] = []
        self._cells: list[npt.NDArray[np.int64]] = []
        self._classes: list[npt.NDArray[np.uint8]] = []
        self._noise: list[npt.NDArray[np.float32]] = []
        self._window_lengths: list[int] = []
        self._frame_lengths: list[int] = []

    def add(self, medium: Medium) -> None:
        scene = medium.frames[0]
        layout = frame_layout(scene.height // PATCH, scene.width // PATCH, self._window_cells)
        pictures = [patchify(np.asarray(draw(frame, medium.style))) for frame in medium.frames]
        for index in range(0, len(pictures), 2):
            self._frames += pictures[index : index + 2]
            size = layout.num_patches
            # A still picture is repeated once in time: both indices name the same patches.
            second = size if len(pictures) > 1 else 0
            self._first.append(layout.to_window + self._num_frame_patches)
            self._second.append(layout.to_window + self._num_frame_patches + second)
            self._num_frame_patches += size + second
            self._add_step(layout, medium, medium.frames[index : index + 2])

    def _add_step(self, layout: FrameLayout, medium: Medium, scenes: tuple[Scene, ...]) -> None:
        self._rows.append(layout.rows_of)
        self._columns.append(layout.columns_of)
        self._cells.append(layout.cell_from_window + self._num_cells)
        self._classes.append(_cell_classes(scenes))
        self._noise.append(np.full(layout.num_patches, medium.noise, np.float32))
        self._window_lengths += layout.windows
        self._frame_lengths.append(layout.num_patches)
        self.num_patches += layout.num_patches
        self._num_cells += layout.num_patches // (MERGE * MERGE)

    def arrays(self) -> Batch:
        return {
            "frames": np.concatenate(self._frames),
            "first": np.concatenate(self._first).astype(np.int32),
            "second": np.concatenate(self._second).astype(np.int32),
            "rows": np.concatenate(self._rows).astype(np.int16),
            "columns": np.concatenate(self._columns).astype(np.int16),
            "cells": np.concatenate(self._cells).astype(np.int32),
            "cell_classes": np.concatenate(self._classes),
            "noise": np.concatenate(self._noise),
            "window_ends": np.cumsum([0, *self._window_lengths]).astype(np.int32),
            "frame_ends": np.cumsum([0, *self._frame_lengths]).astype(np.int32),
        }


def _cell_classes(scenes: tuple[Scene, ...]) -> npt.NDArray[np.uint8]:
    """Which coloured shape has its centre (its mean over the frames) in each merged cell, in raster order."""
    rows, columns = scenes[0].height // CELL, scenes[0].width // CELL
    classes = np.zeros((rows, columns), np.uint8)
    for index, shape in enumerate(scenes[0].shapes):
        x = sum(scene.shapes[index].x for scene in scenes) / len(scenes)
        y = sum(scene.shapes[index].y for scene in scenes) / len(scenes)
        row, column = min(rows - 1, int(y * rows)), min(columns - 1, int(x * columns))
        name = 1 + COLOURS.index(shape.colour) * len(SHAPE_KINDS) + SHAPE_KINDS.index(shape.kind)
        classes[row, column] = name if classes[row, column] == 0 else IGNORED_CELL
    return classes.ravel()


def _num_patches(sample: Sample) -> int:
    return len(sample.vision_positions) * MERGE * MERGE
