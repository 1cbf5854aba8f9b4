"""On a GPU every path gives the logits of plain torch within the rounding of bfloat16, whatever the batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")

from gpu_helpers import (
    Setup,
    SteppedEngine,
    free_unreachable,
    lost_margins,
    make_setup,
    new_sequence,
    relative_error,
)

from llm_service.attention.triton import DENSE_MIN_TOKENS
from llm_service.sequence import Sequence

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

# Twice the largest logit error seen in plain bfloat16: what lies closer together may change places.
MARGIN = 0.1


@pytest.fixture(scope="module", params=["3b", "7b"])
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """True layer shapes, two layers deep, with random weights."""
    yield make_setup(request.param, Path(tmp_path_factory.mktemp(request.param)))


def check_logits(setup: Setup, actual: torch.Tensor, token_ids: list[int]) -> None:
    """As close to float32 as plain torch in bfloat16 is, or closer."""
    expected = setup.reference_logits(token_ids, 1)[0]
    plain_error = relative_error(setup.reference_logits(token_ids, 1, torch.bfloat16)[0], expected)
    assert relative_error(actual, expected) < 1.5 * plain_error + 1e-3


@pytest.mark.parametrize("num_tokens", [1, 300, DENSE_MIN_TOKENS + 100])
def test_prefill_and_captured_decode(setup: Setup, num_tokens: int) -> None:
    """A prompt through the paged kernel or dense attention, then one token through the graph of one row."""
    sequence = new_sequence(num_tokens, prompt_seed=num_tokens)
    setup.engine.packed_logits.clear()
    setup.engine.run([sequence])
    if num_tokens > 1:
        check_logits(setup, setup.engine.packed_logits[-1][0], sequence.token_ids[:num_tokens])
    check_logits(setup, setup.engine.runner._logits[0], sequence.token_ids[: num_tokens + 1])


def test_graph_of_prompts_is_eager(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and chunks beside decodes, through buckets that fill them up, and kernel by kernel. A bucket has more
    rows, for which cuBLAS takes other kernels, so that near ties may fall differently; from there on a sequence goes
    its own way, and its logits are held against those of its own tokens alone."""

    def rows() -> list[tuple[torch.Tensor, list[int]]]:
        """Logits, and the tokens that they follow."""
        setup.engine.packed_logits.clear()
        setup.engine.packed_rows.clear()
        setup.engine.engine.add(
            *[new_sequence(30 + index, prompt_seed=500 + index, max_tokens=40) for index in range(5)]
        )
        for _ in range(3):
            setup.engine.step()
        setup.engine.run([new_sequence(2_500, prompt_seed=510), new_sequence(150, prompt_seed=511)])
        return [
            (logits[row], sequence.token_ids[:num_tokens])
            for logits, sampled in zip(setup.engine.packed_logits, setup.engine.packed_rows, strict=True)
            for row, (sequence, num_tokens) in enumerate(sampled)
        ]

    buckets: list[object] = []
    bucket_of = setup.engine.runner._prompt_graphs.bucket_of

    def recorded(*arguments: object) -> object:
        buckets.append(bucket_of(*arguments))  # type: ignore[arg-type]
        return buckets[-1]

    monkeypatch.setattr(setup.engine.runner._prompt_graphs, "bucket_of", recorded)
    captured = rows()
    assert sum(bucket is not None for bucket in buckets) >= 3
    monkeypatch.setattr(setup.engine.runner._prompt_graphs, "bucket_of", lambda chunks, special: None)
    eager = rows()
    assert len(captured) == len(eager)
    num_same = 0
    for (one, tokens), (other, other_tokens) in zip(captured, eager, strict=True):
        assert torch.isfinite(one).all()
        check_logits(setup, one, tokens)
        check_logits(setup, other, other_tokens)
        if tokens == other_tokens:
            num_same += 1
            assert relative_error(one, other) < 2e-2
    assert num_same > len(eager) // 2


def test_chunked_prefill(setup: Setup) -> None:
    sequence = new_sequence(1_000, prompt_seed=5)
    setup.engine.packed_logits.clear()
    section = setup.engine.engine.scheduler.section
    setup.engine.engine.scheduler.section = section.model_copy(update={"prefill_chunk_tokens": 384})
    setup.engine.run([sequence])
    setup.engine.engine.scheduler.section = section
    check_logits(setup, setup.engine.packed_logits[-1][0], sequence.token_ids[:1_000])


def test_padded_bucket(setup: Setup) -> None:
    """Five rows in a bucket of eight: right where there are sequences, finite everywhere, and nothing of the step
    before is left."""
    setup.engine.runner._logits.fill_(torch.nan)
    sequences = [new_sequence(40 + 30 * index, prompt_seed=10 + index) for index in range(5)]
    setup.engine.run(sequences)
    logits = setup.engine.runner._logits[:8]
    assert torch.isfinite(logits).all()
    for row, sequence in enumerate(sequences):
        check_logits(setup, logits[row], sequence.token_ids[:-1])


def test_captured_is_eager(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step after a prompt. Eager attention splits a context otherwise, so that near ties may fall differently."""
    sequences = [new_sequence(100, prompt_seed=seed) for seed in range(20, 28)]
    setup.engine.run(sequences)
    captured = setup.engine.runner._logits[:8].clone()
    monkeypatch.setattr(setup.engine.runner._graphs, "can_launch", lambda chunks, special: False)
    setup.engine.packed_logits.clear()
    again = [new_sequence(100, prompt_seed=seed) for seed in range(20, 28)]
    setup.engine.run(again)
    assert [s.token_ids[:-1] for s in again] == [s.token_ids[:-1] for s in sequences]
    assert relative_error(setup.engine.packed_logits[-1], captured) < 2e-2
    assert all(lost_margins(setup, sequence).max() < MARGIN for sequence in (*sequences, *again))


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_batch_does_not_change_clear_answers(setup: Setup, batch: int) -> None:
    sequences = [new_sequence(30 + 7 * index, prompt_seed=100 + index, max_tokens=12) for index in range(batch)]
    setup.engine.run(sequences)
    for sequence in sequences[:8]:
        assert lost_margins(setup, sequence).max() < MARGIN


def test_long_prompt_beside_streams(setup: Setup) -> None:
    """Decodes, a chunk and a new prompt share steps; nobody's answer suffers, and no step takes too many of them."""
    engine = setup.engine
    streams = [new_sequence(50 + index, prompt_seed=200 + index, max_tokens=30) for index in range(6)]
    engine.engine.add(*streams)
    for _ in range(4):
        engine.step()
    long, short = new_sequence(5_000, prompt_seed=300, max_tokens=8), new_sequence(20, prompt_seed=301, max_tokens=8)
    engine.run([long, short])
    for sequence in (*streams, long, short):
        assert lost_margins(setup, sequence).max() < MARGIN


def test_one_step_ahead_is_step_by_step(setup: Setup) -> None:
    """Greedy and drawn, some with stop tokens, which are seen a step later: the same tokens to the last."""

    def requests() -> list[Sequence]:
        kinds: list[dict[str, object]] = [
            {}, {"temperature": 0.8, "seed": 3}, {"temperature": 1.0, "top_k": 20, "seed": 4},
            {"temperature": 1.0, "top_p": 0.7, "min_tokens": 3, "ignore_eos": False, "seed": 5},
        ]  # fmt: skip
        return [new_sequence(64, prompt_seed=400 + index, max_tokens=16, **kind) for index, kind in enumerate(kinds)]

    runner = setup.engine.runner
    ahead = setup.engine.run(requests())
    assert runner.num_steps_ahead == 1
    runner.num_steps_ahead = 0
    plain = setup.engine.run(requests())
    # One sequence takes other kernels than four: what it says alone counts.
    (alone,) = setup.engine.run([new_sequence(64, prompt_seed=400, max_tokens=16)])
    stop = alone[5]
    stopped = setup.engine.run([new_sequence(64, prompt_seed=400, max_tokens=16, stop_token_ids=(stop,))])
    runner.num_steps_ahead = 1
    stopped_ahead = setup.engine.run([new_sequence(64, prompt_seed=400, max_tokens=16, stop_token_ids=(stop,))])
    assert plain == ahead
    assert stopped == [alone[: alone.index(stop) + 1]]
    assert stopped_ahead == stopped


def test_cache_takes_what_is_free(setup: Setup) -> None:
    """`gpu_memory_fraction` of the GPU, weights, work space and graphs included."""
    free_unreachable()
    _, num_total = torch.cuda.mem_get_info()
    engine = SteppedEngine(setup.model, kv_cache_bytes=0, gpu_memory_fraction=0.5, max_running_requests=4)
    num_free, _ = torch.cuda.mem_get_info()
    assert 0.4 * num_total < num_total - num_free < 0.5 * num_total
    assert len(engine.run([new_sequence(100, prompt_seed=1)])[0]) == 2
