"""The demo: what it draws, when it calls itself failed, and the whole of it."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest

from router.cli.demo import Answered, find_problems, time_table
from router.cli.demo_cases import Case, draw_cases
from triptych.client import Answer
from triptych.v1 import admin_pb2, common_pb2, inference_pb2


def answered(case: Case, text: str = "right", *, prefill: str = "p", decode: str = "d") -> Answered:
    route = inference_pb2.Route(prefill_actor=prefill, decode_actor=decode)
    timings = inference_pb2.Timings(encode_queue_s=0.001, encode_s=0.002, total_s=1.5)
    answer = Answer(text, (1,), "stop", common_pb2.Usage(), timings, route, "r", "tiny")
    return Answered(case, "?", "right", answer)


def infos(num_items: int, **encoder: object) -> dict[str, admin_pb2.ActorInfo]:
    weights = admin_pb2.Weights(num_visual_parameters=5)
    counters = admin_pb2.EncoderCounters(accepted_items=num_items)
    values = {"stage": common_pb2.STAGE_ENCODER, "weights": weights, "encoder": counters} | encoder
    language = admin_pb2.ActorInfo(
        actor_id="p", stage=common_pb2.STAGE_PREFILL, weights=admin_pb2.Weights(num_language_parameters=5)
    )
    return {"e": admin_pb2.ActorInfo(actor_id="e", **values), "p": language}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return draw_cases(Random(4))


def test_a_seed_draws_the_same_and_another_seed_does_not(cases: list[Case]) -> None:
    again = draw_cases(Random(4))
    assert [case.questions for case in again] == [case.questions for case in cases]
    assert [[p.tobytes() for p in case.pictures] for case in again] == [
        [p.tobytes() for p in case.pictures] for case in cases
    ]
    assert [case.truth for case in draw_cases(Random(5))] != [case.truth for case in cases]


def test_there_is_a_picture_a_pair_a_video_and_text(cases: list[Case]) -> None:
    assert [case.num_media for case in cases] == [1, 2, 1, 0]
    assert [case.is_video for case in cases] == [False, False, True, False]
    assert all(case.questions for case in cases)
    parts = [[part.WhichOneof("part") for part in case.message("?").parts] for case in cases]
    assert parts == [["image", "text"], ["image", "image", "text"], ["video", "text"], ["text"]]


def test_nothing_is_wrong_when_the_actors_counted_what_was_sent(cases: list[Case]) -> None:
    assert find_problems([answered(case) for case in cases], infos(4)) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (infos(3), "counts 3 pictures and videos, 4 were sent"),
        (infos(4, weights=admin_pb2.Weights(num_language_parameters=1)), "holds language weights"),
        (infos(4, leases=admin_pb2.LeaseCounters(held_leases=2)), "still holds 2 leases"),
    ],
)
def test_what_the_actors_say_is_checked(cases: list[Case], found: dict[str, admin_pb2.ActorInfo], words: str) -> None:
    (problem,) = find_problems([answered(case) for case in cases], found)
    assert words in problem


def test_a_language_actor_with_visual_weights_is_a_problem(cases: list[Case]) -> None:
    found = infos(4)
    found["p"].weights.num_visual_parameters = 1
    assert find_problems([answered(case) for case in cases], found) == ["p holds visual weights"]


def test_one_actor_for_both_is_a_problem(cases: list[Case]) -> None:
    answers = [answered(case, decode="p") for case in cases]
    assert len(find_problems(answers, infos(4))) == len(cases)


def test_mostly_wrong_answers_are_a_problem(cases: list[Case]) -> None:
    answers = [answered(case, "wrong") for case in cases]
    assert find_problems(answers, infos(4)) == ["only 0 of 4 answers are right"]


def test_time_table_has_a_row_for_each_answer(cases: list[Case]) -> None:
    rows = time_table([answered(cases[0])])
    assert len(rows) == 2 and rows[1].split()[:2] == ["a", "picture"]
    assert rows[1].split()[3] == "3.0" and rows[1].split()[-1] == "1500.0"


@pytest.mark.ray
def test_the_whole_demo_without_a_terminal() -> None:
    command = [sys.executable, "-m", "router.cli", "demo", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "\x1b" not in result.stdout
    assert result.stdout.count("(right)") >= 6
    assert "embeddings went over" in result.stdout and "everything is stopped again" in result.stdout
