"""Exact answers by generation, for each kind of question, on pictures drawn from another seed than training's.

python -m tools.tiny_model.evaluate triptych/assets/tiny --questions 200 --out evaluation.json
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from tools.tiny_model.conversations import Conversation, Medium, single_question
from tools.tiny_model.files import load_tokenizer
from tools.tiny_model.layout import patchify
from tools.tiny_model.samples import SampleEncoder
from tools.tiny_model.shape import IMAGE_MEAN, IMAGE_STD, PATCH, ModelShape
from tools.tiny_model.tokenizer import token_id
from triptych.demo.pictures import draw
from triptych.demo.questions import KINDS

MAX_NEW_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Wrong:
    """A question that was not answered word for word."""

    kind: str
    question: str
    expected: str
    answered: str


class Evaluator:
    """Asks the model of a checkpoint folder through transformers' `generate`, greedily and in float32."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._device = device
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        self._model.to(device).eval()
        self._tokenizer: Tokenizer = load_tokenizer(folder)
        self._encoder = SampleEncoder(self._tokenizer, ModelShape())

    def evaluate(
        self,
        num_questions: int,
        seed: str,
        batch_size: int,
        kinds: tuple[str, ...] = KINDS,
        limit_s: float | None = None,
    ) -> dict[str, object]:
        """`num_questions` of each kind; stops after `limit_s` with the kinds that it got to."""
        start = time.monotonic()
        rates: dict[str, float] = {}
        asked: dict[str, int] = {}
        wrong: list[Wrong] = []
        for kind in kinds:
            if limit_s is not None and time.monotonic() - start > limit_s:
                break
            rng = Random(f"{seed}-{kind}")
            conversations = [single_question(rng, kind) for _ in range(num_questions)]
            mistakes: list[Wrong] = []
            for first in range(0, num_questions, batch_size):
                group = conversations[first : first + batch_size]
                for conversation, answered in zip(group, self.answer(group, rng), strict=True):
                    question = conversation.turns[-1].question
                    if answered != question.answer:
                        mistakes.append(Wrong(kind, question.text, question.answer, answered))
            wrong += mistakes[:8]
            asked[kind] = num_questions
            rates[kind] = 1.0 - len(mistakes) / num_questions
            print(
                f"{kind:22s} {rates[kind]:.4f}  ({num_questions} questions, {time.monotonic() - start:.0f} s)",
                flush=True,
            )
        return {
            "exact": rates,
            "questions": asked,
            "seed": seed,
            "wrong": [f"{w.kind}: {w.question} | expected: {w.expected} | answered: {w.answered}" for w in wrong],
        }

    @torch.no_grad()
    def answer(self, conversations: list[Conversation], rng: Random) -> list[str]:
        """The model's answer to the last turn of each conversation."""
        inputs = self._inputs(conversations, rng)
        generated = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new_tokens = generated[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._tokenizer.decode(tokens, skip_special_tokens=True) for tokens in new_tokens]

    def _inputs(self, conversations: list[Conversation], rng: Random) -> dict[str, Tensor]:
        """Left-padded prompts with the media in the order of their placeholders."""
        prompts: list[list[int]] = []
        pictures: list[Tensor] = []
        videos: list[Tensor] = []
        picture_grids: list[list[int]] = []
        video_grids: list[list[int]] = []
        seconds: list[float] = []
        noise = np.random.default_rng(rng.getrandbits(64))
        for conversation in conversations:
            sample = self._encoder.encode(conversation, rng)
            answer = sample.answer_of.count(len(sample.kinds) - 1)
            prompts.append(sample.ids[:-answer])
            for medium in conversation.media:
                values, grid = pixel_values(medium, noise)
                (videos if medium.is_video else pictures).append(values)
                (video_grids if medium.is_video else picture_grids).append(grid)
                if medium.is_video:
                    seconds.append(rng.choice((0.5, 1.0, 1.0, 1.5, 2.0, 0.34)))
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), token_id("<|endoftext|>"))
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        kinds = (ids == token_id("<|image_pad|>")).int() + 2 * (ids == token_id("<|video_pad|>")).int()
        inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}
        if pictures:
            inputs |= {"pixel_values": torch.cat(pictures), "image_grid_thw": torch.tensor(picture_grids)}
        if videos:
            inputs |= {"pixel_values_videos": torch.cat(videos), "video_grid_thw": torch.tensor(video_grids)}
            inputs["second_per_grid_ts"] = torch.tensor(seconds)
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}


def pixel_values(medium: Medium, noise: np.random.Generator | None = None) -> tuple[Tensor, list[int]]:
    """What transformers' processor makes of a medium: [patches, 1176] and its grid (steps, rows, columns)."""
    frames = []
    for scene in medium.frames:
        pixels = np.asarray(draw(scene, medium.style))
        if noise is not None and medium.noise:
            pixels = np.clip(pixels + noise.normal(0.0, medium.noise, pixels.shape), 0, 255).round().astype(np.uint8)
        frames.append(torch.from_numpy(patchify(pixels)))
    frames = frames if medium.is_video else frames * 2
    pairs = torch.stack([torch.stack(frames[at : at + 2], dim=2) for at in range(0, len(frames), 2)]).float()
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    scene = medium.frames[0]
    grid = [len(frames) // 2, scene.height // PATCH, scene.width // PATCH]
    return ((pairs / 255.0 - mean) / std).flatten(0, 1).flatten(1), grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoint folder")
    parser.add_argument("--questions", type=int, default=200, help="questions of each kind")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--seed", default="evaluation")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    evaluator = Evaluator(arguments.folder, device)
    result = evaluator.evaluate(arguments.questions, arguments.seed, arguments.batch, tuple(arguments.kinds))
    print("\n".join(result["wrong"]))  # type: ignore[arg-type]
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
