"""Draws have the right distribution, and depend on nothing but seed, position and logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llm_service.prompt import Prompt
from llm_service.sampler import Sampler, uniform
from llm_service.sequence import Sequence
from triptych.sampling import SamplingParameters

EOS = 3
VOCAB_SIZE = 50


def sequence_at(position: int, num_generated: int = 0, **sampling: object) -> Sequence:
    """A sequence whose next token is number `position`."""
    num_prompt = position - num_generated
    prompt = Prompt((1,) * num_prompt, (), np.zeros((3, num_prompt), dtype=np.int64))
    values = {"max_tokens": 99, "temperature": 1.0, "seed": 7} | sampling
    sequence = Sequence("request", prompt, SamplingParameters(**values))  # type: ignore[arg-type]
    sequence.token_ids += [1] * num_generated
    return sequence


def random_logits(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.fixture
def sampler() -> Sampler:
    return Sampler([EOS])


def test_greedy_takes_the_likeliest(sampler: Sampler) -> None:
    logits = random_logits(6)
    expected = logits.argmax(-1).tolist()
    assert sampler.sample(logits, [sequence_at(5, temperature=0.0)] * 6) == expected


def test_same_draws_in_any_batch(sampler: Sampler) -> None:
    logits = random_logits(40)
    kinds: list[dict[str, object]] = [{}, {"top_p": 0.7}, {"top_k": 5}, {"temperature": 0.0}, {"seed": 2**64 - 1}]
    sequences = [sequence_at(10 + row, **kinds[row % len(kinds)]) for row in range(40)]
    together = sampler.sample(logits.clone(), sequences)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = sampler.sample(logits[order].clone(), [sequences[row] for row in order])
    alone = [sampler.sample(logits[row : row + 1].clone(), [sequences[row]])[0] for row in range(40)]
    assert together == alone
    assert [together[row] for row in order] == shuffled


def test_resumed_request_draws_the_same(sampler: Sampler) -> None:
    """Tokens that became part of the prompt count as before: the position is absolute."""
    logits = random_logits(1)
    assert sampler.sample(logits.clone(), [sequence_at(30, num_generated=12)]) == sampler.sample(
        logits.clone(), [sequence_at(30, num_generated=0)]
    )


def test_seeds_and_positions_give_other_draws(sampler: Sampler) -> None:
    logits = random_logits(1).expand(200, -1)
    by_position = sampler.sample(logits.clone(), [sequence_at(position) for position in range(1, 201)])
    by_seed = sampler.sample(logits.clone(), [sequence_at(9, seed=seed) for seed in range(200)])
    assert len(set(by_position)) > 10
    assert len(set(by_seed)) > 10


def test_uniform_is_uniform() -> None:
    seeds, positions = np.meshgrid(np.arange(100, dtype=np.uint64), np.arange(1_000, dtype=np.uint64))
    numbers = uniform(seeds.ravel(), positions.ravel())
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
    # Chi-square with 99 degrees of freedom: above 149 once in a thousand.
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 149
    by_seed = numbers.reshape(1_000, 100)
    assert abs(np.corrcoef(by_seed[:-1].ravel(), by_seed[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(by_seed[:, :-1].ravel(), by_seed[:, 1:].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.5, 7, 1.0), (1.0, 0, 0.6), (0.8, 12, 0.8)]
)
def test_distribution_is_that_of_transformers(sampler: Sampler, temperature: float, top_k: int, top_p: float) -> None:
    logits = random_logits(1, seed=4)
    scores = TemperatureLogitsWarper(temperature)(None, logits.clone())
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = scores.softmax(-1)[0].double()
    num_draws = 20_000
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    prompt = Prompt((1,) * 4, (), np.zeros((3, 4), dtype=np.int64))
    sequences = [
        Sequence("request", prompt, SamplingParameters(9, seed=seed, **sampling))  # type: ignore[arg-type]
        for seed in range(num_draws)
    ]
    drawn = torch.tensor(sampler.sample(logits.repeat(num_draws, 1), sequences))
    counts = torch.bincount(drawn, minlength=VOCAB_SIZE).double()
    assert torch.all(counts[expected == 0] == 0)
    likely = expected * num_draws > 5
    chi_square = ((counts - expected * num_draws) ** 2 / (expected * num_draws))[likely].sum()
    assert chi_square < 2.2 * int(likely.sum()) + 20


def test_stop_tokens_wait_for_min_tokens(sampler: Sampler) -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, EOS], logits[0, 8], logits[0, 9] = 30, 20, 10
    sampling: dict[str, object] = {"temperature": 0.0, "stop_token_ids": (8,), "min_tokens": 2}
    assert sampler.sample(logits.clone(), [sequence_at(5, 1, **sampling)]) == [9]
    assert sampler.sample(logits.clone(), [sequence_at(5, 2, **sampling)]) == [EOS]
    # With ignore_eos the end-of-sequence token is a token like any other.
    assert sampler.sample(logits.clone(), [sequence_at(5, 1, **sampling, ignore_eos=True)]) == [EOS]


def test_extreme_temperatures_and_tiny_top_p(sampler: Sampler) -> None:
    logits = random_logits(1)
    likeliest = int(logits.argmax())
    for sampling in ({"temperature": 1e-30}, {"top_p": 1e-9}, {"top_k": 1}, {"temperature": 1e-30, "top_p": 0.5}):
        assert sampler.sample(logits.clone(), [sequence_at(5, **sampling)]) == [likeliest]
    huge = torch.full((1, VOCAB_SIZE), -torch.inf)
    huge[0, 4] = 3e38
    assert sampler.sample(huge, [sequence_at(5)]) == [4]
