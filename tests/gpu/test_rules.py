"""On a GPU the rules of requests give the tokens and log probabilities of the CPU, and nothing waits for the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")

from llm_service.fused_sampler import FusedSampler
from llm_service.logprobs import TokenLogprob
from llm_service.prompt import Prompt
from llm_service.sampler import Sampler
from llm_service.sequence import PENDING_TOKEN, Sequence
from triptych.sampling import SamplingParameters

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

DEVICE = torch.device("cuda")
VOCAB_SIZE, EOS, NUM_STEPS = 152_064, 151_645, 5
KINDS: list[dict[str, object]] = [
    {},
    {"repetition_penalty": 1.3, "logprobs": 3},
    {"frequency_penalty": 0.9, "presence_penalty": 0.2},
    {"logit_bias": ((77, 100.0), (78, -100.0)), "logprobs": 0},
    {"min_tokens": 3, "stop_token_ids": (5, 9)},
    {"repetition_penalty": 0.8, "frequency_penalty": -1.0, "logprobs": 20},
]


def new_sequences() -> list[Sequence]:
    prompt = Prompt(tuple(range(40, 80)), (), np.zeros((3, 40), dtype=np.int64))
    return [
        Sequence("request", prompt, SamplingParameters(max_tokens=99, **kind))  # type: ignore[arg-type]
        for kind in KINDS
    ]


def logits_of_step(step: int) -> torch.Tensor:
    """The same few tokens stay likely, so that penalties have something to do."""
    torch.manual_seed(3)
    likely = torch.randn(len(KINDS), VOCAB_SIZE)
    likely[:, 50:90] += 4
    return likely + 0.3 * torch.randn(len(KINDS), VOCAB_SIZE, generator=torch.Generator().manual_seed(step))


def expected() -> tuple[list[list[int]], list[dict[int, TokenLogprob]]]:
    sampler, sequences, told = Sampler([EOS]), new_sequences(), []
    for step in range(NUM_STEPS):
        tokens = sampler.sample(logits_of_step(step), sequences)
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.token_ids.append(token)
        logprobs = sampler.take_logprobs()
        assert logprobs is not None
        told.append({sequences.index(sequence): value for sequence, value in logprobs.read().items()})
    return [sequence.token_ids[40:] for sequence in sequences], told


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_as_on_the_cpu_while_tokens_are_pending() -> None:
    tokens_expected, logprobs_expected = expected()
    sampler, sequences, pending = FusedSampler([EOS]), new_sequences(), []
    for step in range(NUM_STEPS):
        logits = logits_of_step(step).to(DEVICE)
        rows = len(sequences)
        host = {name: np.zeros(shape, np.float32 if dtype is torch.float32 else np.int64)
                for name, (shape, dtype) in FusedSampler.specs(rows).items()}  # fmt: skip
        FusedSampler.fill(sequences, host)
        fields = {name: torch.from_numpy(array).to(DEVICE) for name, array in host.items()}
        special = {name: torch.from_numpy(array).to(DEVICE) for name, array in sampler.special(sequences).items()}
        out = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
        with no_waiting():
            FusedSampler.sample(logits, fields, out)
            sampler.resample(logits, fields, special, out)
        logprobs = sampler.take_logprobs()
        assert logprobs is not None
        pending.append((out, logprobs.to_host()))
        # The host knows none of the tokens until the end.
        for sequence in sequences:
            sequence.token_ids.append(PENDING_TOKEN)
    torch.cuda.synchronize()
    assert torch.stack([out for out, _ in pending], dim=1).tolist() == tokens_expected
    for (_, logprobs), told in zip(pending, logprobs_expected, strict=True):
        for sequence, value in logprobs.read().items():
            other = told[sequences.index(sequence)]
            assert value.token_id == other.token_id and value.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in value.top] == [token for token, _ in other.top]
