"""How a request reaches a server: Triptych's gRPC, or any OpenAI chat endpoint."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from triptych.bench.workload import BenchRequest
from triptych.client.request import NO_LIMIT
from triptych.errors import TriptychError
from triptych.rpc.channels import channel_options
from triptych.rpc.status import rpc_errors
from triptych.v1 import common_pb2, inference_pb2, inference_pb2_grpc


@dataclass
class BenchResult:
    """What came back for one request. Times are seconds of `time.perf_counter`; token_times has one entry a chunk."""

    request: BenchRequest
    sent_s: float = 0.0
    finished_s: float = 0.0
    token_times: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    # Seconds by stage, from the answer's summary; empty when the server does not say.
    stages: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def is_ok(self) -> bool:
        return not self.error and bool(self.token_times)


class Backend(Protocol):
    """Sends one request and reads its stream to the end. An error is a result, not an exception."""

    async def send(self, request: BenchRequest) -> BenchResult: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Target:
    """Where the load goes. ignore_eos: every answer has the length that was asked for."""

    endpoint: str
    base_url: str
    model: str
    timeout_s: float
    ignore_eos: bool
    temperature: float
    token: str = ""


class GrpcBackend:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._channel = grpc.aio.insecure_channel(target.endpoint, options=channel_options(NO_LIMIT))
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._metadata = [("authorization", f"Bearer {target.token}")] if target.token else None

    async def send(self, request: BenchRequest) -> BenchResult:
        images = [inference_pb2.ContentPart(image=inference_pb2.Image(data=image)) for image in request.images]
        message = inference_pb2.ChatMessage(
            role="user", parts=[*images, inference_pb2.ContentPart(text=request.prompt)]
        )
        sampling = common_pb2.SamplingParameters(
            max_tokens=request.num_output_tokens,
            ignore_eos=self._target.ignore_eos,
            temperature=self._target.temperature,
        )
        return await self._read(
            BenchResult(request), inference_pb2.GenerateRequest(messages=[message], sampling=sampling)
        )

    async def close(self) -> None:
        await self._channel.close()

    async def _read(self, result: BenchResult, message: inference_pb2.GenerateRequest) -> BenchResult:
        result.sent_s = time.perf_counter()
        try:
            with rpc_errors(self._target.endpoint):
                call = self._stub.Generate(message, timeout=self._target.timeout_s, metadata=self._metadata)
                async for response in call:
                    if response.chunk.token_ids:
                        result.token_times.append(time.perf_counter())
                    if response.HasField("summary"):
                        _read_summary(response.summary, result)
        except TriptychError as error:
            result.error = f"{type(error).__name__}: {error}"
        finally:
            result.finished_s = time.perf_counter()
        return result


def _read_summary(summary: inference_pb2.GenerateSummary, result: BenchResult) -> None:
    result.num_prompt_tokens = summary.usage.prompt_tokens
    result.num_output_tokens = summary.usage.completion_tokens
    result.stages = {timing.name: value for timing, value in summary.timings.ListFields()}


class OpenAiChatBackend:
    """Reads the server-sent events of /v1/chat/completions, with the usage in the last one."""

    def __init__(self, target: Target) -> None:
        import httpx2

        self._target = target
        headers = {"Authorization": f"Bearer {target.token}"} if target.token else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx2.AsyncClient(
            base_url=target.base_url, headers=headers, timeout=target.timeout_s, limits=limits, trust_env=False
        )
        self._http_error = httpx2.HTTPError

    async def send(self, request: BenchRequest) -> BenchResult:
        result = BenchResult(request)
        body = json.dumps(self._body(request)).encode()
        result.sent_s = time.perf_counter()
        try:
            headers = {"Content-Type": "application/json"}
            async with self._client.stream("POST", "/v1/chat/completions", content=body, headers=headers) as response:
                if response.status_code != 200:
                    result.error = f"HTTP {response.status_code}: {(await response.aread())[:500]!r}"
                    return result
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        _read_event(line.removeprefix("data:").strip(), result)
        except (self._http_error, ValueError) as error:
            result.error = f"{type(error).__name__}: {error}"
        finally:
            result.finished_s = time.perf_counter()
        return result

    async def close(self) -> None:
        await self._client.aclose()

    def _body(self, request: BenchRequest) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"}}
            for image in request.images
        ]
        content.append({"type": "text", "text": request.prompt})
        return {
            "model": self._target.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": request.num_output_tokens,
            "temperature": self._target.temperature,
            "ignore_eos": self._target.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def _read_event(data: str, result: BenchResult) -> None:
    if data == "[DONE]":
        return
    event = json.loads(data)
    if "error" in event:
        result.error = str(event["error"])
        return
    # The first event may carry the role alone; a token that is half of a character carries no text yet.
    if any(choice.get("delta", {}).get("content") for choice in event.get("choices", ())):
        result.token_times.append(time.perf_counter())
    if usage := event.get("usage"):
        result.num_prompt_tokens = usage["prompt_tokens"]
        result.num_output_tokens = usage["completion_tokens"]
    timings = (event.get("triptych") or {}).get("timings", {})
    if timings:
        result.stages = {name: float(value) for name, value in timings.items()}


BACKENDS: Mapping[str, Callable[[Target], Backend]] = {"grpc": GrpcBackend, "openai-chat": OpenAiChatBackend}
