"""The definitions of the figures, on results whose figures can be said by hand."""

import numpy as np
import pytest

from triptych.bench.backends import BenchResult
from triptych.bench.figures import Distribution, figures_of
from triptych.bench.output import table_lines
from triptych.bench.workload import BenchRequest

REQUEST = BenchRequest(0.0, "what is it?", (), 4)


def result(sent_s: float, *token_times: float, num_tokens: int = 0, error: str = "") -> BenchResult:
    finished_s = token_times[-1] if token_times else sent_s + 0.001
    return BenchResult(
        REQUEST,
        sent_s,
        finished_s,
        list(token_times),
        num_prompt_tokens=10,
        num_output_tokens=num_tokens or len(token_times),
        stages={"encode_s": 0.02},
        error=error,
    )


def test_times_of_one_request() -> None:
    figures = figures_of([result(100.0, 100.1, 100.13, 100.19)], {})
    assert figures.ttft_ms.mean == pytest.approx(100)
    assert figures.tpot_ms.mean == pytest.approx(45)
    assert figures.itl_ms.percentiles[50] == pytest.approx(45)
    assert figures.e2el_ms.mean == pytest.approx(190)
    assert figures.duration_s == pytest.approx(0.19)
    assert figures.output_throughput == pytest.approx(3 / 0.19)
    assert figures.stages_ms["encode_s"].mean == pytest.approx(20)


def test_several_tokens_in_a_chunk_count_one_by_one_for_tpot() -> None:
    assert figures_of([result(0.0, 0.1, 0.2, num_tokens=5)], {}).tpot_ms.mean == pytest.approx(25)


def test_an_answer_of_one_token_has_no_time_between_tokens() -> None:
    figures = figures_of([result(0.0, 0.1), result(0.0, 0.1, 0.2)], {})
    assert figures.tpot_ms.mean == pytest.approx(100)


def test_goodput_counts_who_meets_every_bound() -> None:
    results = [result(0.0, 0.1, 0.11), result(0.0, 0.3, 0.31), result(0.0, 0.1, 0.9), result(0.0, error="lost")]
    figures = figures_of(results, {"ttft": 200, "tpot": 50})
    assert figures.request_goodput == pytest.approx(1 / 0.9)
    assert (figures.num_completed, figures.num_failed) == (3, 1)


def test_most_at_once() -> None:
    assert figures_of([result(0.0, 1.0), result(0.5, 1.5), result(1.2, 2.0)], {}).max_concurrency == 2


def test_percentiles_are_numpys() -> None:
    values = list(np.random.default_rng(3).exponential(size=357))
    distribution = Distribution.of(values)
    for percent, value in distribution.percentiles.items():
        assert value == pytest.approx(np.percentile(values, percent))


def test_a_run_in_which_all_failed_has_a_table() -> None:
    lines = list(table_lines(figures_of([result(0.0, error="lost")], {"ttft": 1.0})))
    assert any(line.startswith("Failed requests:") and line.endswith(" 1") for line in lines)
