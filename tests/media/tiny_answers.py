"""What the shipped model answers about pictures whose patches are given."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from triptych.demo.pictures import draw, random_scene
from triptych.demo.questions import PICTURE_QUESTIONS
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models_folder import BUILT_IN_FOLDER

_MERGED_PATCHES = 4
_NUM_NEW_TOKENS = 32


@dataclass(frozen=True)
class AskedPicture:
    """A JPEG file, a question, and the answer that is expected word for word."""

    data: bytes
    question: str
    answer: str


def asked_pictures(count: int, quality: int = 90) -> list[AskedPicture]:
    """Pictures with one question each, of all kinds in turn; two in three are resized for the model."""
    asked: list[AskedPicture] = []
    seed = 0
    while len(asked) < count:
        rng = Random(seed)
        seed += 1
        sides = [28 * rng.randint(3, 8) + (seed % 3) * rng.randint(1, 60) for _ in range(2)]
        scene = random_scene(rng, sides[0], sides[1], rng.randint(1, 3))
        question = list(PICTURE_QUESTIONS.values())[seed % len(PICTURE_QUESTIONS)](rng, scene)
        if question is None:
            continue
        file = io.BytesIO()
        draw(scene).save(file, "JPEG", quality=quality)
        asked.append(AskedPicture(file.getvalue(), question.text, question.answer))
    return asked


class TinyModel:
    """The shipped model in transformers, greedy."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(BUILT_IN_FOLDER, dtype=dtype)
        self._model = model.eval().to(device)
        self._tokenizer = AutoTokenizer.from_pretrained(BUILT_IN_FOLDER)

    @torch.no_grad()
    def answers(self, questions: Sequence[str], patches: Sequence[Tensor], grids: Sequence[Grid]) -> list[str]:
        return [self._answer(*asked) for asked in zip(questions, patches, grids, strict=True)]

    def _answer(self, question: str, patches: Tensor, grid: Grid) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        pad = "<|image_pad|>"
        prompt = self._tokenizer(text.replace(pad, pad * (grid.num_patches // _MERGED_PATCHES)), return_tensors="pt")
        ids = prompt["input_ids"]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._model.config.image_token_id).int(),
            "pixel_values": patches.to(self._model.dtype),
            "image_grid_thw": torch.tensor([[grid.t, grid.h, grid.w]]),
        }
        on_device = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        output = self._model.generate(**on_device, max_new_tokens=_NUM_NEW_TOKENS, do_sample=False)
        answer: str = self._tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        return answer.strip()
