"""Prompts of the length asked for, pictures nobody has seen, and traces from a file."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer

from triptych.bench.workload import Workload, WorkloadShape
from triptych.errors import ConfigurationError
from triptych.models_folder import BUILT_IN_FOLDER

INF = float("inf")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BUILT_IN_FOLDER / "tokenizer.json"))


def test_requests_have_the_shape_asked_for(tokenizer: Tokenizer) -> None:
    shape = WorkloadShape(num_input_tokens=40, num_output_tokens=7, num_images=2, image_sizes=((64, 48),))
    requests = Workload(tokenizer, 5).requests(20, shape, INF, 1.0)
    lengths = [len(tokenizer.encode(request.prompt, add_special_tokens=False).ids) for request in requests]
    assert all(abs(length - 40) <= 2 for length in lengths)
    assert {request.num_output_tokens for request in requests} == {7}
    pictures = [Image.open(io.BytesIO(image)) for request in requests for image in request.images]
    assert {(picture.format, picture.size) for picture in pictures} == {("JPEG", (64, 48))}
    assert len({image for request in requests for image in request.images}) == 40


def test_the_same_seed_asks_the_same_and_another_one_something_else(tokenizer: Tokenizer) -> None:
    shape = WorkloadShape(num_images=1, image_sizes=((32, 32), (48, 32)), range_ratio=0.5)
    first, second, other = (Workload(tokenizer, seed).requests(8, shape, 4.0, 1.0) for seed in (1, 1, 2))
    assert first == second
    assert not {request.prompt for request in first} & {request.prompt for request in other}
    assert not {request.images for request in first} & {request.images for request in other}


def test_a_trace_is_played_from_its_first_request(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [
        {"timestamp": 12.0, "input_length": 9, "output_length": 3},
        {"timestamp_ms": 10_000, "num_images": 1},
        {"timestamp": 99.0},
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(map(json.dumps, lines)))
    shape = WorkloadShape(num_input_tokens=5, num_output_tokens=6, image_sizes=((32, 32),))
    requests = Workload(tokenizer, 0).from_trace(trace, shape, 2, speed=4.0)
    assert [request.arrival_s for request in requests] == [0.0, 0.5]
    assert [(request.num_output_tokens, len(request.images)) for request in requests] == [(6, 1), (3, 0)]


@pytest.mark.parametrize(
    "line", ["[]", "{}", "no json", '{"timestamp": "soon"}', '{"timestamp": 1, "input_length": []}']
)
def test_a_bad_line_of_a_trace_is_named(tokenizer: Tokenizer, tmp_path: Path, line: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0}\n' + line)
    with pytest.raises(ConfigurationError, match="line 2"):
        Workload(tokenizer, 0).from_trace(trace, WorkloadShape(4, 4), 10, 1.0)


def test_a_trace_that_is_not_there_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.jsonl"):
        Workload(tokenizer, 0).from_trace(tmp_path / "nothing.jsonl", WorkloadShape(), 1, 1.0)
