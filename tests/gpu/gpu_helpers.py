"""Engines over two layers of true shape, and what plain torch makes of the same tokens in float32 and bfloat16."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.model_folders import write_model_folder
from llm_service.engine import Engine, StepOutput
from llm_service.fused_runner import FusedModelRunner
from llm_service.loading import LoadedModel, build_engine
from llm_service.prompt import Prompt
from llm_service.scheduler import Chunk
from llm_service.sequence import Sequence
from triptych.config import LanguageSection
from triptych.models.qwen2_5_vl.attention import DenseCausalAttention
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.language import LanguageModel
from triptych.models.qwen2_5_vl.weights import random_language_model
from triptych.sampling import SamplingParameters

CUDA = torch.device("cuda")
VOCAB = 150_000


class SteppedEngine:
    """An engine without its thread. packed_logits: those of the sampled rows of each step that was no batch of decodes
    through its graph, as they were computed. packed_rows: for each of their rows its sequence, and how many of its
    tokens the row follows."""

    def __init__(self, model: LoadedModel, **section: object) -> None:
        # Without reuse of pages: a prompt that comes a second time takes the same kernels over the same shapes.
        values = {
            "max_context_tokens": 8_192, "kv_cache_bytes": 1 << 28, "max_running_requests": 64,
            "enable_prefix_cache": False,
        } | section  # fmt: skip
        self.outputs: list[StepOutput] = []
        self.engine: Engine = build_engine(model, LanguageSection.model_validate(values), self.outputs.extend)
        runner = self.engine.runner
        assert isinstance(runner, FusedModelRunner)
        self.runner = runner
        runner.prepare()
        self.packed_logits: list[Tensor] = []
        self.packed_rows: list[list[tuple[Sequence, int]]] = []
        for name in ("_launch_packed", "_launch_prompts"):
            setattr(runner, name, self._recorded(getattr(runner, name)))

    def _recorded(self, launch: Callable[..., list[int | None]]) -> Callable[..., list[int | None]]:
        def recorded(*arguments: object) -> list[int | None]:
            rows = launch(*arguments)
            num_sampled = sum(row is not None for row in rows)
            if num_sampled:
                chunks: list[Chunk] = next(argument for argument in arguments if isinstance(argument, list))
                self.packed_rows.append([(chunk.sequence, chunk.end) for chunk in chunks if chunk.is_sampled])
                self.packed_logits.append(self.runner._logits[:num_sampled].clone())
            return rows

        return recorded

    def step(self) -> None:
        self.engine._publish(self.engine._step())

    def run(self, sequences: Seq[Sequence]) -> list[list[int]]:
        """To the end; the tokens of each."""
        self.engine.add(*sequences)
        self.step()
        while self.engine.scheduler.has_work:
            self.step()
        self.engine.scheduler.pool.check()
        assert self.engine.scheduler.pool.num_held_pages == 0
        errors = [output.error for output in self.outputs if output.error is not None]
        assert not errors, errors
        return [sequence.token_ids[sequence.prompt.num_tokens :] for sequence in sequences]


@dataclass
class Setup:
    """engine: with graphs up to a batch of 64, one step ahead."""

    model: LoadedModel
    wide: LanguageModel
    engine: SteppedEngine

    @torch.inference_mode()
    def reference_logits(self, token_ids: Seq[int], num_last: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Float32 logits [num_last, vocab] after the last tokens, by plain torch in `dtype`."""
        language = self.wide if dtype == torch.float32 else self.model.language
        ids = torch.tensor(token_ids, device=CUDA)
        positions = torch.arange(len(token_ids), device=CUDA).expand(3, -1)
        hidden = language(language.embed(ids), positions, DenseCausalAttention([len(token_ids)]))
        return language.logits(hidden[-num_last:])


def free_unreachable() -> None:
    """Engines of tests before this one hold themselves in cycles, and with them gigabytes."""
    gc.collect()
    torch.cuda.empty_cache()


def make_setup(name: str, folder: Path) -> Setup:
    free_unreachable()
    config = ModelConfig.from_folder(write_model_folder(name, folder, num_layers=2))
    language = random_language_model(config, torch.bfloat16, CUDA, seed=0)
    generator = torch.Generator(CUDA).manual_seed(1)
    for parameter_name, parameter in language.named_parameters():
        if parameter.ndim == 1:  # biases and norms, which are trivial otherwise
            noise = torch.randn(parameter.shape, device=CUDA, generator=generator) * 0.2
            parameter.copy_(noise + (0.0 if parameter_name.endswith("bias") else 1.0))
    model = LoadedModel(config, language, "random", torch.bfloat16, CUDA)
    return Setup(model, copy.deepcopy(language).float(), SteppedEngine(model))


def new_sequence(num_tokens: int, prompt_seed: int, **sampling: object) -> Sequence:
    tokens = np.random.default_rng(prompt_seed).integers(0, VOCAB, num_tokens).tolist()
    positions = np.broadcast_to(np.arange(num_tokens), (3, num_tokens))
    values = {"max_tokens": 2, "ignore_eos": True} | sampling
    prompt = Prompt(tuple(tokens), (), positions)
    return Sequence(f"request-{prompt_seed}", prompt, SamplingParameters(**values))  # type: ignore[arg-type]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


def lost_margins(setup: Setup, sequence: Sequence) -> Tensor:
    """For each generated token how far its float32 logit lies below the highest, in the context it was chosen in."""
    num_generated = sequence.num_generated_tokens
    logits = setup.reference_logits(sequence.token_ids[:-1], num_generated)
    chosen = torch.tensor(sequence.token_ids[-num_generated:], device=CUDA)
    return logits.amax(-1) - logits.gather(1, chosen[:, None])[:, 0]
