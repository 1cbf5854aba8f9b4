"""Fused kernels, graphs' inputs and sampling on the device give the tokens of the plain model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if tuple(int(part) for part in np.__version__.split(".")[:2]) >= (2, 4) and not torch.cuda.is_available():
    pytest.skip("Triton's interpreter does not run with numpy 2.4", allow_module_level=True)

from engine_helpers import Model, SteppedEngine, answer, greedy, new_sequence
from fused_helpers import fused_engine, kernel_attention_runner

from llm_service import prompt_graphs
from llm_service.attention import triton as triton_attention
from llm_service.decode_graphs import batch_buckets
from llm_service.fused_sampler import FusedSampler
from llm_service.kernel_warm_up import compiling_side_by_side
from llm_service.prompt import Prompt
from llm_service.prompt_buckets import MAX_PROMPT_TOKENS, PromptBucket, prompt_buckets, smallest
from llm_service.runner import LaunchedStep, LayerWatch
from llm_service.scheduler import Chunk
from llm_service.sequence import FinishReason, Sequence
from llm_service.step_choice import StepChoice
from llm_service.upload import Upload
from triptych.errors import InvalidRequest
from triptych.kernels.batch_linear import BatchTiling
from triptych.kernels.decode_attention import choose_plan
from triptych.models.qwen2_5_vl.fused import BatchPlan
from triptych.sampling import SamplingParameters

# The interpreter takes a millisecond for every program of every kernel.
CASES = ("one image", "one token", "video")
NUM_TOKENS = 4


def answers(engine: SteppedEngine, sequences: list[Sequence]) -> list[tuple[int, ...]]:
    engine.run(sequences)
    assert engine.pool.num_held_pages == 0
    return [answer(sequence) for sequence in sequences]


def expected(model: Model, num_tokens: int = NUM_TOKENS) -> list[tuple[int, ...]]:
    return [model.case(name).expected[:num_tokens] for name in CASES]


@pytest.mark.parametrize("max_skinny_tokens", [0, 16])
@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_tokens_are_those_of_transformers(model: Model, num_steps_ahead: int, max_skinny_tokens: int) -> None:
    engine = fused_engine(model, num_steps_ahead, max_skinny_tokens)
    assert answers(engine, [new_sequence(model.case(name), greedy(NUM_TOKENS)) for name in CASES]) == expected(model)


def test_linears_of_batches_give_the_same_tokens(model: Model) -> None:
    """With outputs gated in the kernel, and inputs in parts that the norms add up."""
    engine = fused_engine(model, num_steps_ahead=1)
    graphs = engine.runner._graphs  # type: ignore[attr-defined]
    whole, parts = BatchTiling(16, 16), BatchTiling(16, 16, num_splits=2)
    plan = BatchPlan(o=parts, gate_up=whole, down=parts)
    graphs._choices = {size: StepChoice(choose_plan(size, 2, 100), None, False, plan) for size in (1, 2, 3)}
    graphs.capture(lambda num_done, num_all: None)
    assert answers(engine, [new_sequence(model.case(name), greedy(NUM_TOKENS)) for name in CASES]) == expected(model)


# Some of the steps below are too large for them.
BUCKETS = (PromptBucket(0, 12), PromptBucket(2, 8))


def count_replays(engine: SteppedEngine, monkeypatch: pytest.MonkeyPatch) -> list[PromptBucket]:
    """The bucket of every step that was launched through one."""
    buckets: list[PromptBucket] = []
    graphs = engine.runner._prompt_graphs  # type: ignore[attr-defined]
    launch = graphs.launch

    def launch_and_count(bucket: PromptBucket, *arguments: object) -> object:
        buckets.append(bucket)
        return launch(bucket, *arguments)

    monkeypatch.setattr(graphs, "launch", launch_and_count)
    return buckets


def test_prompts_through_buckets(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, chunks behind chunks, and padding on both sides, one step ahead of the tokens."""
    monkeypatch.setattr(prompt_graphs, "MAX_CHUNKS", 3)
    monkeypatch.setattr(triton_attention, "choose_prefill_splits", lambda *arguments: 2)
    engine = fused_engine(model, mixed_prefill_tokens=7, prefill_chunk_tokens=12, prompt_buckets=BUCKETS)
    used = count_replays(engine, monkeypatch)
    engine.runner._logits.fill_(torch.nan)  # type: ignore[attr-defined]
    sequences = [new_sequence(model.case(name), greedy(NUM_TOKENS)) for name in CASES]
    for sequence in sequences:
        engine.add(sequence)
        engine.step()
        engine.step()
    assert answers(engine, []) == []
    assert [answer(sequence) for sequence in sequences] == expected(model)
    assert set(used) == set(BUCKETS)


def test_draws_through_a_bucket_are_those_without(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A greedy answer and one cut to its top tokens, which is sampled a second time."""
    monkeypatch.setattr(prompt_graphs, "MAX_CHUNKS", 2)
    monkeypatch.setattr(triton_attention, "choose_prefill_splits", lambda *arguments: 1)
    used: list[list[PromptBucket]] = []

    def drawn(*buckets: PromptBucket) -> list[tuple[int, ...]]:
        engine = fused_engine(model, max_running_requests=2, prompt_buckets=buckets)
        used.append(count_replays(engine, monkeypatch))
        sampling = SamplingParameters(max_tokens=3, temperature=1.2, seed=11, top_k=5)
        cases = (("one token", greedy(3)), ("one image", sampling))
        return answers(engine, [new_sequence(model.case(name), values) for name, values in cases])

    assert drawn(PromptBucket(1, 24)) == drawn()
    assert used[0]
    assert not used[1]


@pytest.mark.parametrize("mixed_prefill_tokens", [5, 40])
def test_decodes_chunks_and_prompts_in_one_step(
    model: Model, mixed_prefill_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_attention, "DENSE_MIN_TOKENS", 12)
    engine = fused_engine(model, mixed_prefill_tokens=mixed_prefill_tokens)
    sequences = [new_sequence(model.case(name), greedy(NUM_TOKENS)) for name in CASES]
    for sequence in sequences:
        engine.add(sequence)
        engine.step()
        engine.step()
    assert answers(engine, []) == []
    assert [answer(sequence) for sequence in sequences] == expected(model)


def test_prefix_cache_and_preemption(model: Model) -> None:
    engine = fused_engine(model, page_size=2, num_pages=33)
    first = [new_sequence(model.case(name), greedy(NUM_TOKENS)) for name in CASES]
    assert answers(engine, first) == expected(model)
    second = [new_sequence(model.case(name), greedy(NUM_TOKENS)) for name in CASES]
    assert answers(engine, second) == expected(model)
    assert sum(sequence.num_preemptions for sequence in (*first, *second)) > 0
    assert sum(sequence.num_cached_prompt_tokens for sequence in second) > 0


def test_plain_model_over_the_kernels(model: Model) -> None:
    engine = fused_engine(model)
    engine.runner = kernel_attention_runner(model, engine.cache)
    assert answers(engine, [new_sequence(model.case(name), greedy(4)) for name in CASES]) == expected(model, 4)


def test_stop_token_is_seen_one_step_late_and_nothing_follows_it(model: Model) -> None:
    tokens = model.case("one token").expected
    stop = next(token for index, token in enumerate(tokens) if index >= 3 and token not in tokens[:index])
    engine = fused_engine(model)
    sequence = new_sequence(model.case("one token"), greedy(stop_token_ids=(stop,)))
    engine.run([sequence])
    assert engine.last_output(sequence).finish_reason is FinishReason.STOP
    assert answer(sequence) == tokens[: tokens.index(stop) + 1]
    assert [token for output in engine.outputs for token in output.token_ids] == list(answer(sequence))


def test_draws_depend_on_neither_batch_nor_route(model: Model) -> None:
    kinds: list[dict[str, object]] = [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_tokens": 3, "ignore_eos": False}]

    def drawn(name: str, index: int) -> Sequence:
        values = {"max_tokens": 4, "temperature": 1.2, "seed": 11 + index, "ignore_eos": True} | kinds[index % 4]
        return new_sequence(model.case(name), SamplingParameters(**values))  # type: ignore[arg-type]

    together = answers(fused_engine(model), [drawn(name, index) for index, name in enumerate(CASES)])
    for index, name in enumerate(CASES):
        alone = drawn(name, index)
        engine = fused_engine(model, num_steps_ahead=0, mixed_prefill_tokens=3, prefill_chunk_tokens=7)
        assert answers(engine, [alone]) == [together[index]]
    assert len(set(together)) == len(CASES)


def test_special_rows_get_what_they_ask_for() -> None:
    """top_k=1 takes the likeliest whatever the temperature, and a banned token does not come."""
    sampler = FusedSampler([3])
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    logits[2, 3], logits[2, 7] = 40.0, 30.0
    kinds: list[dict[str, object]] = [
        {"temperature": 5.0, "top_k": 1}, {"temperature": 5.0, "top_p": 1e-6}, {"min_tokens": 2}, {},
    ]  # fmt: skip
    prompt = Prompt((1,), (), np.zeros((3, 1), dtype=np.int64))
    sequences = [
        Sequence("request", prompt, SamplingParameters(**{"max_tokens": 9, **kind}))  # type: ignore[arg-type]
        for kind in kinds
    ]
    upload = Upload(1_000, torch.device("cpu"))
    fields = upload.fields(sampler.specs(4))
    sampler.fill(sequences, fields.host[0])
    special = {name: torch.from_numpy(array) for name, array in sampler.special(sequences).items()}
    out = torch.zeros(4, dtype=torch.int64)
    likeliest = logits.argmax(-1).tolist()
    sampler.sample(logits, fields.device, out)
    assert out[3] == likeliest[3]
    sampler.resample(logits, fields.device, special, out)
    assert out.tolist() == [likeliest[0], likeliest[1], 7, likeliest[3]]


def test_a_position_beyond_the_table_is_refused_alone(model: Model) -> None:
    engine = fused_engine(model)
    good, bad = new_sequence(model.case("one token"), greedy(3)), new_sequence(model.case("video"), greedy(3))
    bad.prompt = Prompt(bad.prompt.token_ids, bad.prompt.media, bad.prompt.positions + 510)
    engine.run([good, bad])
    assert isinstance(engine.last_output(bad).error, InvalidRequest)
    assert answer(good) == model.case("one token").expected[:3]
    assert engine.pool.num_held_pages == 0


def test_padding_never_gives_nan(model: Model) -> None:
    """A bucket of 4 rows with 3 in use: the logits of all rows are finite."""
    engine = fused_engine(model, max_running_requests=4)
    engine.runner._logits.fill_(torch.nan)  # type: ignore[attr-defined]
    engine.run([new_sequence(model.case("one token"), greedy(3)) for _ in range(3)])
    assert torch.isfinite(engine.runner._logits).all()  # type: ignore[attr-defined]


def test_a_step_is_one_upload(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes, chunks through a bucket and without one, media, rows with rules: all of it in one copy a step."""
    engine = fused_engine(model, prompt_buckets=BUCKETS, prefill_chunk_tokens=8)
    num_sent, num_launched = 0, 0
    send, launch = Upload.send, engine.runner.launch

    def send_and_count(upload: Upload, num_bytes: int) -> None:
        nonlocal num_sent
        num_sent += 1
        send(upload, num_bytes)

    def launch_and_count(chunks: list[Chunk], watch: LayerWatch | None = None) -> LaunchedStep:
        nonlocal num_launched
        num_launched += 1
        return launch(chunks, watch)

    monkeypatch.setattr(Upload, "send", send_and_count)
    monkeypatch.setattr(engine.runner, "launch", launch_and_count)
    rules = greedy(NUM_TOKENS, repetition_penalty=1.2, logit_bias=((5, 1.0),), logprobs=2)
    engine.run(
        [new_sequence(model.case("one image"), rules), new_sequence(model.case("one token"), greedy(NUM_TOKENS))]
    )
    assert num_sent == num_launched >= NUM_TOKENS


def test_buckets() -> None:
    assert batch_buckets(1) == [1]
    assert batch_buckets(9) == [1, 2, 4, 8, 9]
    buckets = batch_buckets(256)
    assert buckets[:7] == [1, 2, 4, 8, 16, 24, 32]
    assert buckets[-1] == 256
    assert len(buckets) <= 20


def test_prompt_buckets() -> None:
    buckets = prompt_buckets(32_768, 1_024, 256)
    assert len(buckets) == len(set(buckets)) <= 50
    assert smallest(buckets, 0, 1_400) == PromptBucket(0, 1_408)
    assert smallest(buckets, 64, 1_000) == PromptBucket(64, 1_024)
    assert smallest(buckets, 3, 5) == PromptBucket(16, 64)
    assert smallest(buckets, 0, MAX_PROMPT_TOKENS) == PromptBucket(0, MAX_PROMPT_TOKENS)
    assert smallest(buckets, 0, MAX_PROMPT_TOKENS + 1) is None
    assert smallest(buckets, 257, 5) is None
    assert all(bucket.num_prompt_tokens <= 200 for bucket in prompt_buckets(200, 1_024, 8))


def test_kernels_are_launched_ahead_as_steps_launch_them(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    """All of them run on this model, and the cache stays empty; a failing one is told and takes no other with it."""
    engine = fused_engine(model, max_skinny_tokens=1)
    tasks = engine.runner._kernel_uses()  # type: ignore[attr-defined]
    # The interpreter runs one kernel at a time.
    for task in tasks:
        task()
    assert not engine.cache.tensor.any()
    done: list[int] = []
    uses = [lambda: done.append(1), lambda: 1 // 0, lambda: done.append(2)]
    with caplog.at_level("INFO", logger="llm_service.kernel_warm_up"), compiling_side_by_side(uses):
        done.append(0)
    assert sorted(done) == [0, 1, 2]
    assert "division" in caplog.text
    assert "2 of 3 uses" in caplog.text
