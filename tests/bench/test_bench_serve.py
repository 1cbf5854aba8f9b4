"""`triptych bench serve` against a running system, over both APIs where there are two."""

import asyncio
import json
from pathlib import Path

import pytest
from harness import ONE_OF_EACH, InProcessSystem
from tokenizers import Tokenizer
from typer.testing import CliRunner

from router.cli.app import app
from triptych.bench.backends import GrpcBackend, Target
from triptych.bench.figures import figures_of
from triptych.bench.run import run_load
from triptych.bench.workload import Workload, WorkloadShape
from triptych.errors import ConfigurationError
from triptych.models_folder import BUILT_IN_FOLDER


def target(endpoint: str, timeout_s: float = 30.0) -> Target:
    return Target(endpoint, "", "tiny", timeout_s, ignore_eos=True, temperature=0.0)


def tiny_workload(seed: int) -> Workload:
    return Workload(Tokenizer.from_file(str(BUILT_IN_FOLDER / "tokenizer.json")), seed)


async def test_every_request_is_answered_with_the_length_asked_for() -> None:
    shape = WorkloadShape(num_input_tokens=12, num_output_tokens=9, num_images=1, image_sizes=((56, 56), (84, 56)))
    requests = tiny_workload(3).requests(12, shape, rate=40.0, burstiness=1.0)
    async with InProcessSystem(BUILT_IN_FOLDER, ONE_OF_EACH) as system:
        backend = GrpcBackend(target(system.endpoint))
        results = await run_load(backend, requests, max_concurrency=4)
        await backend.close()
    figures = figures_of(results, {"e2el": 60_000})
    assert [result.error for result in results] == [""] * 12
    assert figures.num_output_tokens == 12 * 9
    assert figures.max_concurrency <= 4
    assert figures.request_goodput == pytest.approx(figures.request_throughput)
    assert figures.stages_ms["encode_s"].mean > 0
    assert 0 < figures.ttft_ms.mean <= figures.e2el_ms.mean


async def test_a_server_that_is_not_there_is_a_failed_request_not_a_crash() -> None:
    requests = tiny_workload(1).requests(1, WorkloadShape(4, 4), float("inf"), 1.0)
    backend = GrpcBackend(target("127.0.0.1:1", timeout_s=2.0))
    results = await run_load(backend, requests, max_concurrency=0)
    await backend.close()
    assert "Unavailable" in results[0].error or "DeadlineExceeded" in results[0].error
    assert figures_of(results, {}).num_failed == 1


async def test_the_command_prints_saves_and_draws(tmp_path: Path) -> None:
    result, plot = tmp_path / "run.json", tmp_path / "run.svg"
    arguments = ["bench", "serve", "--num-prompts", "6", "--output-len", "5", "--input-len", "8", "--num-images", "1"]
    arguments += ["--image-size", "56x56", "--request-rate", "50", "--goodput", "ttft:60000", "--save-detailed"]
    arguments += ["--save-result", str(result), "--plot", str(plot)]
    async with InProcessSystem(BUILT_IN_FOLDER, ONE_OF_EACH) as system:
        arguments += ["--endpoint", system.endpoint]
        outcome = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "Median TTFT (ms):" in outcome.output
    record = json.loads(result.read_text())
    assert record["figures"]["num_output_tokens"] == 30
    assert len(record["requests"]) == 6
    assert plot.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    "flags",
    [("--goodput", "ttft"), ("--goodput", "speed:3"), ("--image-size", "large"), ("--backend", "carrier-pigeon")],
)
def test_flags_that_make_no_sense_are_told(flags: tuple[str, str]) -> None:
    outcome = CliRunner().invoke(app, ["bench", "serve", *flags])
    assert isinstance(outcome.exception, ConfigurationError)
    assert flags[0] in str(outcome.exception)
