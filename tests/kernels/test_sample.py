"""The sampler: greedy, drawn, reproducible, and distributed as asked."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from triptych.kernels import sample as kernel
from triptych.kernels.sample import perturbed_logits_reference, philox_reference, sample, sample_reference


def test_philox_known_answer() -> None:
    """The vector of Random123 for counter 0 and key 0."""
    words = philox_reference(*(torch.zeros(1, dtype=torch.int64) for _ in range(3)))
    assert words[:, 0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_tokens_as_the_reference(dtype: torch.dtype, device: torch.device) -> None:
    logits = (torch.randn(5, 5003, device=device) * 3).to(dtype)
    temperatures = torch.tensor([0.0, 1.0, 0.7, 1e-30, 2.0], device=device)
    seeds = torch.tensor([3, -1, 2**62 + 5, 7, 0], device=device)
    positions = torch.tensor([0, 1, 2**33 + 1, 4, 5], device=device)
    actual = sample(logits, temperatures, seeds, positions)
    assert actual.dtype == torch.int64
    assert actual.tolist() == sample_reference(logits, temperatures, seeds, positions).tolist()
    assert actual[0] == logits[0].argmax() and actual[3] == logits[3].float().argmax()


def test_a_draw_depends_on_neither_batch_nor_splits(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    logits, seeds = torch.randn(3, 9000, device=device), torch.tensor([5, 6, 7], device=device)
    temperatures, positions = torch.ones(3, device=device), torch.tensor([10, 11, 12], device=device)
    together = sample(logits, temperatures, seeds, positions)
    alone = [sample(logits[i : i + 1], temperatures[:1], seeds[i : i + 1], positions[i : i + 1]) for i in range(3)]
    assert together.tolist() == torch.cat(alone).tolist()
    monkeypatch.setattr(kernel, "num_vocabulary_splits", lambda num_rows, vocab_size: 1)
    assert sample(logits, temperatures, seeds, positions).tolist() == together.tolist()


def test_greedy_takes_the_lowest_of_equals_and_stays_inside(device: torch.device) -> None:
    logits = torch.zeros(3, 4500, device=device)
    logits[1, [4400, 2100]] = 1.0
    logits[2] = -torch.inf
    zeros = torch.zeros(3, dtype=torch.int64, device=device)
    assert sample(logits, torch.zeros(3, device=device), zeros, zeros).tolist() == [0, 2100, 0]


def test_draws_follow_the_softmax(device: torch.device) -> None:
    num_draws = 20_000
    logits, temperature = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5], device=device), 0.8
    positions = torch.arange(num_draws, device=device)
    perturbed = perturbed_logits_reference(
        logits.expand(num_draws, -1), torch.full((num_draws,), temperature, device=device), positions * 0 + 9, positions
    )
    counts = torch.bincount(perturbed.argmax(-1), minlength=5).float()
    expected = (logits / temperature).softmax(-1) * num_draws
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 18.5, "0.1 % of fair samplers are that far off (4 degrees of freedom)"


def test_draws_of_the_kernel_follow_the_softmax(device: torch.device) -> None:
    """One row is a draw; in the interpreter a few dozen are quick, so a lopsided softmax has to do."""
    num_draws = 60
    logits = torch.full((num_draws, 40), -20.0, device=device)
    logits[:, 17], logits[:, 33] = 2.0, 1.0
    positions = torch.arange(num_draws, device=device)
    tokens = sample(logits, torch.ones(num_draws, device=device), positions * 0, positions)
    counts = torch.bincount(tokens, minlength=40)
    assert int(counts[17] + counts[33]) == num_draws
    # 0.73 of 60 are 43.9, with a standard deviation of 3.4.
    assert 31 <= int(counts[17]) <= 56
