"""schemathesis on the OpenAPI document: whatever is sent, no 500, no hang, errors in their shape, nothing held.

The examples are the same in every run. A longer search: SCHEMATHESIS_EXAMPLES=2000 pytest tests/api/test_http_fuzz.py
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from http_system import HttpSystem, circle, data_url, http_system
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.openapi import from_dict

from router.api.openai.openapi import openapi_document

NUM_EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "20"))
ANSWERED_WITHIN_S = 10.0
KNOWN_STATUS = {200, 400, 404, 405, 413, 415, 422, 429, 503, 504}
DOCUMENT = openapi_document("test")

reproducible = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Served:
    """A system on a thread of its own: the examples are sent by blocking code, as schemathesis does."""

    def __init__(self) -> None:
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._system: HttpSystem | None = None
        self._end = asyncio.Event()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._is_up.wait(60)

    async def _run(self) -> None:
        limits = {"max_new_tokens": 16, "max_media_items": 4}
        async with http_system(limits=limits, defaults={"timeout_s": 5.0, "max_tokens": 4}) as self._system:
            self.url = self._system.url
            self._is_up.set()
            await self._end.wait()

    def check_nothing_is_held(self) -> None:
        assert self._system is not None
        work = self._system.system.wait_until_nothing_is_held(10.0)
        asyncio.run_coroutine_threadsafe(work, self._loop).result(15)
        assert self._system.ports.answering.budget.num_held == 0

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.stop()


def check(status: int, content: bytes, headers: Any, seconds: float) -> None:
    assert status in KNOWN_STATUS, f"{status}: {content[:500]!r}"
    assert seconds < ANSWERED_WITHIN_S
    assert headers["x-request-id"]
    if status >= 400:
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"], error
        assert error["code"] != "internal_error"


schema = from_dict(DOCUMENT)


@schema.parametrize()
@reproducible
def test_the_openapi_document(case: schemathesis.Case, served: Served) -> None:
    """Bodies and paths that fit the document, and such that do not."""
    answer = case.call(base_url=served.url, timeout=ANSWERED_WITHIN_S)
    check(answer.status_code, answer.content, answer.headers, answer.elapsed)
    served.check_nothing_is_held()


URLS = st.sampled_from(
    [data_url(circle()), data_url(circle())[:-40], data_url(b"", "image/png"), "data:,", "http://127.0.0.1/x", "x"]
)
PARTS = st.one_of(
    st.builds(lambda words: {"type": "text", "text": words}, st.text(max_size=20)),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, URLS),
    st.builds(lambda url: {"type": "video_url", "video_url": {"url": url.replace("image/png", "video/jpeg")}}, URLS),
)
CONTENT = st.one_of(st.text(max_size=20), st.lists(PARTS, max_size=3))
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": CONTENT}),
    min_size=1,
    max_size=3,
)
NUMBERS = st.one_of(st.sampled_from([0, 1, 0.5, -1, 2]), st.floats(-3, 3), st.integers(-2, 2**33))
FORMATS = st.sampled_from(
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}},
    ]
)
OPTIONS = st.fixed_dictionaries(
    {"messages": MESSAGES, "max_tokens": st.integers(0, 6)},
    optional={
        "stream": st.booleans(),
        "stream_options": st.sampled_from([{"include_usage": True}, {}]),
        "n": st.integers(0, 4),
        "temperature": NUMBERS,
        "top_p": NUMBERS,
        "top_k": st.integers(-2, 5),
        "presence_penalty": NUMBERS,
        "frequency_penalty": NUMBERS,
        "repetition_penalty": NUMBERS,
        "logprobs": st.booleans(),
        "top_logprobs": st.integers(0, 25),
        "logit_bias": st.dictionaries(st.sampled_from(["1", "70", "99999999", "x"]), NUMBERS, max_size=2),
        "seed": st.integers(-(2**63), 2**64),
        "stop": st.one_of(st.text(max_size=2), st.lists(st.text(max_size=2), max_size=3)),
        "response_format": FORMATS,
        "guided_regex": st.sampled_from(["[0-9]+", "(", "a{1000000}", ""]),
        "guided_choice": st.lists(st.text(max_size=3), max_size=3),
        "ignore_eos": st.booleans(),
        "min_tokens": st.integers(0, 8),
        "stop_token_ids": st.lists(st.integers(-1, 2_000), max_size=2),
        "timeout_s": st.sampled_from([5, 0.001, 0, -1]),
    },
)


@given(body=OPTIONS)
@reproducible
def test_plausible_requests(served: Served, body: dict[str, Any]) -> None:
    """Most fields right, so that many get as far as the stages."""
    with httpx2.Client(trust_env=False, timeout=ANSWERED_WITHIN_S) as client:
        answer = client.post(f"{served.url}/v1/chat/completions", json=body)
    check(answer.status_code, answer.content, answer.headers, answer.elapsed.total_seconds())
    if answer.status_code == 200 and body.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
    served.check_nothing_is_held()
