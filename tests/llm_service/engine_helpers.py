"""A small random checkpoint, its reference in transformers, and an engine that is stepped by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tiny_qwen import IMAGE_TOKEN, VIDEO_TOKEN, VISION_END, VISION_START, tiny_config
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from llm_service.attention import build_attention
from llm_service.device_defaults import resolve_section
from llm_service.engine import Engine, StepOutput
from llm_service.kv_cache import PagedKvCache, PageShape
from llm_service.model_runner import ModelRunner
from llm_service.page_pool import PagePool
from llm_service.prompt import MediaSpan, Prompt
from llm_service.sampler import Sampler
from llm_service.scheduler import Scheduler
from llm_service.sequence import Sequence
from triptych.config import LanguageSection
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.language import LanguageModel
from triptych.models.qwen2_5_vl.vision import VisionTower
from triptych.models.qwen2_5_vl.weights import load_language_model, load_vision_tower
from triptych.sampling import SamplingParameters

CPU = torch.device("cpu")
PATCH_DIM = 3 * 2 * 14 * 14
NUM_NEW_TOKENS = 64


def reference_model(
    hidden_size: int = 48, num_heads: int = 6, num_kv_heads: int = 2
) -> Qwen2_5_VLForConditionalGeneration:
    """Weights wide enough that the likeliest token is clearly ahead, and answers do not fall into a short loop."""
    text = {"hidden_size": hidden_size, "num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads}
    config = tiny_config(
        tie=False,
        text=text | {"max_position_embeddings": 1024},
        vision={"depth": 2, "out_hidden_size": hidden_size, "fullatt_block_indexes": [1]},
    )
    torch.manual_seed(1)
    model = Qwen2_5_VLForConditionalGeneration(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        spread = 1.0 if "embed_tokens" in name else 0.2
        parameter.copy_(torch.randn_like(parameter) * spread + ("norm" in name))
    # A trained model never answers with a placeholder.
    model.lm_head.weight[IMAGE_TOKEN : VISION_END + 1] = 0.0
    return model


@dataclass(frozen=True, eq=False)
class Case:
    """A prompt for both sides: patches for transformers, embeddings of the same tower for the engine."""

    prompt: Prompt
    patches: tuple[Tensor, ...]
    embeddings: tuple[Tensor, ...]
    expected: tuple[int, ...]


@dataclass
class Model:
    """Everything made once from the checkpoint."""

    folder: Path
    config: ModelConfig
    language: LanguageModel
    tower: VisionTower
    reference: Qwen2_5_VLForConditionalGeneration
    cases: dict[str, Case] = field(default_factory=dict)

    def case(self, name: str) -> Case:
        """Made with its 64 expected tokens when it is first asked for."""
        if name not in self.cases:
            self.cases[name] = self._make_case(*CASES[name])
        return self.cases[name]

    def _make_case(self, parts: Seq[int | tuple[str, Grid, float]], seed: int) -> Case:
        generator = torch.Generator().manual_seed(seed)
        token_ids: list[int] = []
        spans: list[MediaSpan] = []
        patches: list[Tensor] = []
        for part in parts:
            if isinstance(part, int):
                token_ids += torch.randint(0, 100, (part,), generator=generator).tolist()
                continue
            kind, grid, seconds = part
            length = grid.num_tokens(2)
            assert kind in ("image", "video")
            content_key = f"{kind}-{seed}-{len(spans)}"
            spans.append(MediaSpan(len(token_ids) + 1, length, kind, grid, content_key, seconds))
            placeholder = IMAGE_TOKEN if kind == "image" else VIDEO_TOKEN
            token_ids += [VISION_START, *[placeholder] * length, VISION_END]
            patches.append(torch.randn(grid.num_patches, PATCH_DIM, generator=generator))
        prompt = Prompt.build(token_ids, spans, self.config)
        embeddings = tuple(self.tower(item, [span.grid]) for item, span in zip(patches, spans, strict=True))
        return Case(prompt, tuple(patches), embeddings, self.generate(prompt, patches, NUM_NEW_TOKENS))

    @torch.no_grad()
    def generate(self, prompt: Prompt, patches: Seq[Tensor], num_tokens: int) -> tuple[int, ...]:
        """What transformers answers, greedily, past the end of sequence."""
        ids = torch.tensor([prompt.token_ids])
        inputs = {}
        for kind, suffix in (("image", ""), ("video", "_videos")):
            chosen = [index for index, span in enumerate(prompt.media) if span.kind == kind]
            if chosen:
                grids = [prompt.media[index].grid for index in chosen]
                inputs[f"pixel_values{suffix}"] = torch.cat([patches[index] for index in chosen])
                inputs[f"{kind}_grid_thw"] = torch.tensor([[grid.t, grid.h, grid.w] for grid in grids])
        seconds = [span.second_per_grid_t for span in prompt.media if span.kind == "video"]
        if seconds:
            inputs["second_per_grid_ts"] = torch.tensor(seconds)
        types = (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO_TOKEN).int()
        output = self.reference.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=types,
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **inputs,
        )
        assert isinstance(output, Tensor)
        return tuple(output[0, ids.shape[1] :].tolist())


# Parts of a prompt: a number of random text tokens, or a picture or video. And the seed of it all.
CASES: dict[str, tuple[tuple[int | tuple[str, Grid, float], ...], int]] = {
    "text": ((37,), 1),
    "one token": ((1,), 2),
    "one image": ((5, ("image", Grid(1, 6, 4), 0.0), 7), 3),
    "two images": ((3, ("image", Grid(1, 4, 10), 0.0), 6, ("image", Grid(1, 8, 6), 0.0), 9), 4),
    "video": ((4, ("video", Grid(5, 4, 6), 1.3), 6), 5),
    "video between images": (
        (2, ("image", Grid(1, 4, 4), 0.0), 3, ("video", Grid(3, 6, 4), 0.75), ("image", Grid(1, 2, 8), 0.0), 5),
        6,
    ),
}


def make_model(folder: Path, **sizes: int) -> Model:
    """Writes the checkpoint to `folder` and reads it back; sizes as `reference_model` takes them."""
    reference = reference_model(**sizes)
    reference.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")  # not read here, but a checkpoint has one
    config = ModelConfig.from_folder(folder)
    language = load_language_model(folder, config, torch.float32, CPU)
    return Model(folder, config, language, load_vision_tower(folder, config, torch.float32, CPU), reference)


class SteppedEngine(Engine):
    """An engine without its thread: the test says when a step is taken."""

    def __init__(
        self, model: Model, section: LanguageSection, max_sequence_tokens: int = 512, num_steps_ahead: int = 0
    ) -> None:
        section = resolve_section(section, CPU)
        shape = PageShape.of_model(model.config.text, section.page_size, torch.float32)
        num_pages = section.num_pages or shape.num_pages_in(section.kv_cache_bytes)
        self.cache = PagedKvCache(shape, num_pages, CPU)
        self.pool = PagePool(num_pages, section.page_size, section.enable_prefix_cache)
        sampler = Sampler(model.config.eos_token_ids)
        attention = build_attention(section.attention, self.cache)
        runner = ModelRunner(model.language, self.cache, attention, sampler, num_steps_ahead)
        self.outputs: list[StepOutput] = []
        self.num_steps_with: dict[str, int] = {}
        super().__init__(Scheduler(section, self.pool, self.cache), runner, max_sequence_tokens, self.outputs.extend)

    def _drain_inbox(self) -> None:
        if self._thread.is_alive():
            return super()._drain_inbox()
        while not self._inbox.empty():
            self._inbox.get()()
        return None

    def step(self) -> None:
        self._publish(self._step())
        self.pool.check()

    def run(self, sequences: Iterable[Sequence] = ()) -> None:
        """Adds the sequences and steps until all work is done."""
        for sequence in sequences:
            self.add(sequence)
        self.step()
        for _ in range(2_000):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def last_output(self, sequence: Sequence) -> StepOutput:
        (last,) = [output for output in self.outputs if output.sequence is sequence and output.is_last]
        return last


MakeEngine = Callable[..., SteppedEngine]


def greedy(max_tokens: int = NUM_NEW_TOKENS, **values: object) -> SamplingParameters:
    return SamplingParameters(**{"max_tokens": max_tokens, "ignore_eos": True, **values})  # type: ignore[arg-type]


def new_sequence(case: Case, sampling: SamplingParameters | None = None, **values: object) -> Sequence:
    sampling = sampling or greedy()
    return Sequence("request", case.prompt, sampling, embeddings=case.embeddings, **values)  # type: ignore[arg-type]


def answer(sequence: Sequence) -> tuple[int, ...]:
    return tuple(sequence.token_ids[sequence.prompt.num_tokens :])
