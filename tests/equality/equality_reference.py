"""transformers on the shipped checkpoint. Nothing of Triptych is imported here but the description of the prompts.

The one exception is handed in: the patches of pictures that are resized, where Pillow and torch round differently.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from equality_cases import MODEL_FRAMES_PER_SECOND, Case, Medium, Picture, Video
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.video_utils import VideoMetadata, read_video_pyav

NUM_NEW_TOKENS = 64
PLACEHOLDER = re.compile(r"<\|(image|video)_pad\|>")
MERGED_PATCHES = 4
TEMPORAL_PATCH_SIZE = 2


@dataclass(frozen=True)
class Pixels:
    """What the vision tower is given: patches [num_patches, 1176] and the grid (steps, rows, columns).

    `second_per_grid_t` is 0 for a picture.
    """

    patches: Tensor
    grid: tuple[int, int, int]
    second_per_grid_t: float

    @property
    def num_tokens(self) -> int:
        steps, rows, columns = self.grid
        return steps * rows * columns // MERGED_PATCHES


@dataclass(frozen=True)
class Expected:
    """An answer: greedy tokens, past the end of sequence, and the smallest lead in logits that one of them had."""

    token_ids: tuple[int, ...]
    smallest_margin: float


class Reference:
    """Every result is computed once."""

    def __init__(self, folder: Path, resized_patches: Callable[[bytes], Tensor]) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        # Going on past the end of sequence, as ignore_eos does.
        self.model.generation_config.eos_token_id = None
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self._resized_patches = resized_patches
        self._pixels: dict[Medium, Pixels] = {}
        self._answers: dict[str, Expected] = {}

    def prompt(self, case: Case) -> list[int]:
        """Token ids: the chat template, with every placeholder repeated once for each embedding, as the processor of
        Qwen2.5-VL does."""
        messages = [
            {"role": role, "content": [self._template_part(part) for part in parts]} for role, parts in case.turns
        ]
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        lengths = iter([self.pixels(medium).num_tokens for medium in case.media])
        token_ids: list[int] = self._tokenizer(PLACEHOLDER.sub(lambda found: found[0] * next(lengths), text))[
            "input_ids"
        ]
        return token_ids

    def positions(self, case: Case) -> tuple[Tensor, int]:
        """mRoPE positions [3, num_tokens] and the delta."""
        inputs = self._inputs(case)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        positions, delta = self.model.model.get_rope_index(**{name: inputs.get(name) for name in names})
        return positions[:, 0], int(delta.item())

    def answer(self, case: Case) -> Expected:
        if case.name not in self._answers:
            self._answers[case.name] = self._generate(case)
        return self._answers[case.name]

    @torch.no_grad()
    def embedding(self, medium: Medium) -> Tensor:
        """[num_tokens, hidden], encoded alone."""
        pixels = self.pixels(medium)
        embedding: Tensor = self.model.model.visual(pixels.patches, grid_thw=torch.tensor([pixels.grid])).pooler_output
        return embedding

    def pixels(self, medium: Medium) -> Pixels:
        if medium not in self._pixels:
            self._pixels[medium] = self._picture(medium) if isinstance(medium, Picture) else self._video(medium)
        return self._pixels[medium]

    def processed(self, picture: Image.Image) -> tuple[Tensor, tuple[int, int, int]]:
        """Patches and grid by transformers' own image processor."""
        processed = self._image_processor(images=[picture], return_tensors="pt")
        [grid] = processed["image_grid_thw"].tolist()
        return processed["pixel_values"], tuple(grid)

    def _picture(self, picture: Picture) -> Pixels:
        patches, grid = self.processed(Image.open(io.BytesIO(picture.data)))
        return Pixels(self._resized_patches(picture.data) if picture.is_resized else patches, grid, 0.0)

    def _video(self, video: Video) -> Pixels:
        """Frame by frame through the image processor, which writes a picture as two equal frames: a temporal step
        takes the first half of its first frame's patches and the second half of its second frame's."""
        frames, metadata = self._frames(video)
        frames += frames[-1:] * (len(frames) % TEMPORAL_PATCH_SIZE)
        halves = []
        for frame in frames:
            patches, (_, rows, columns) = self.processed(frame)
            halves.append(patches.view(rows * columns, 3, TEMPORAL_PATCH_SIZE, -1)[:, :, 0])
        steps = [torch.stack(halves[at : at + 2], dim=2).flatten(1) for at in range(0, len(halves), 2)]
        sampled_rate = metadata.sampled_fps if video.frames_per_second else MODEL_FRAMES_PER_SECOND
        return Pixels(torch.cat(steps), (len(steps), rows, columns), TEMPORAL_PATCH_SIZE / sampled_rate)

    def _frames(self, video: Video) -> tuple[list[Image.Image], VideoMetadata]:
        if video.data:
            pixels, metadata = read_video_pyav(io.BytesIO(video.data), lambda **_: list(video.sampled))
            assert metadata.total_num_frames == video.num_frames
            return [Image.fromarray(frame) for frame in pixels], metadata
        frames = [Image.open(io.BytesIO(video.frames[index])) for index in video.sampled]
        metadata = VideoMetadata(video.num_frames, fps=video.frames_per_second, frames_indices=list(video.sampled))
        return frames, metadata

    def _template_part(self, part: str | Medium) -> dict[str, str]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return {"type": "image" if isinstance(part, Picture) else "video"}

    def _inputs(self, case: Case) -> dict[str, Any]:
        prompt = torch.tensor([self.prompt(case)])
        config = self.model.config
        types = (prompt == config.image_token_id).int() + 2 * (prompt == config.video_token_id).int()
        inputs: dict[str, Any] = {"input_ids": prompt, "mm_token_type_ids": types}
        pictures = [self.pixels(medium) for medium in case.media if isinstance(medium, Picture)]
        videos = [self.pixels(medium) for medium in case.media if isinstance(medium, Video)]
        if pictures:
            inputs["pixel_values"] = torch.cat([pixels.patches for pixels in pictures])
            inputs["image_grid_thw"] = torch.tensor([pixels.grid for pixels in pictures])
        if videos:
            inputs["pixel_values_videos"] = torch.cat([pixels.patches for pixels in videos])
            inputs["video_grid_thw"] = torch.tensor([pixels.grid for pixels in videos])
            inputs["second_per_grid_ts"] = torch.tensor([pixels.second_per_grid_t for pixels in videos])
        return inputs

    def _generate(self, case: Case) -> Expected:
        inputs = self._inputs(case)
        output = self.model.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            max_new_tokens=NUM_NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best, second = torch.cat(output.logits).topk(2).values.unbind(1)
        token_ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        assert len(token_ids) == NUM_NEW_TOKENS
        return Expected(tuple(token_ids), float((best - second).min()))
