"""What all attacks share: a call that says how it ended, how long it took and in what memory; and the aftermath."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from harness import InProcessSystem
from memory_bound import MIB as MIB
from memory_bound import bounded_memory as bounded_memory
from PIL import Image, ImageDraw

from triptych.rpc.channels import channel_options
from triptych.v1 import common_pb2, inference_pb2, inference_pb2_grpc

QUESTION = "What is in the picture?"
RIGHT_ANSWER = "A red circle."
# What the error table can say; INTERNAL and UNKNOWN would be bugs.
TABLE_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}


@dataclass(frozen=True)
class Outcome:
    """How a call ended as a foreign gRPC client sees it, without this project's translation back."""

    code: grpc.StatusCode
    message: str
    trailers: dict[str, str | bytes]
    text: str = ""
    token_ids: tuple[int, ...] = ()
    attempts: int = 0
    seconds: float = 0.0

    @cached_property
    def status(self) -> status_pb2.Status:
        return status_pb2.Status.FromString(self.trailers.get("grpc-status-details-bin", b""))

    @property
    def field(self) -> str:
        """Of the ErrorInfo that every error of the project carries; fails without one."""
        return self._detail(error_details_pb2.ErrorInfo()).metadata["field"]

    @property
    def reason(self) -> str:
        return self._detail(error_details_pb2.ErrorInfo()).reason

    @property
    def retry_s(self) -> float:
        return self._detail(error_details_pb2.RetryInfo()).retry_delay.ToMilliseconds() / 1_000

    def _detail(self, message: Any) -> Any:
        for detail in self.status.details:
            if detail.Unpack(message):
                return message
        raise AssertionError(f"no {message.DESCRIPTOR.name} in the details of {self.code.name}: {self.message}")


class Attacker:
    """A client without any checks of its own, against one running system."""

    def __init__(self, system: InProcessSystem) -> None:
        self.system = system
        self.channel = grpc.aio.insecure_channel(system.endpoint, options=channel_options(-1))
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    async def generate(self, request: inference_pb2.GenerateRequest, timeout_s: float = 20.0) -> Outcome:
        """The outcome of a whole call, an error or an answer."""
        call = self.stub.Generate(request, timeout=timeout_s)
        started = time.monotonic()
        text, token_ids, attempts = "", [], 0
        try:
            async for response in call:
                text += response.chunk.text
                token_ids.extend(response.chunk.token_ids)
                attempts = response.summary.route.attempts
        except grpc.aio.AioRpcError as error:
            return failure(error, time.monotonic() - started)
        seconds = time.monotonic() - started
        return Outcome(grpc.StatusCode.OK, "", {}, text, tuple(token_ids), attempts, seconds)

    async def refused(
        self,
        request: inference_pb2.GenerateRequest,
        field: str,
        *says: str,
        code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
        within_s: float = 2.0,
        peak_bytes: int = 64 * MIB,
    ) -> Outcome:
        """Sends what must be refused: with this code, this field and these words, soon, and with little memory."""
        with bounded_memory(peak_bytes):
            outcome = await self.generate(request)
        assert outcome.code is code, f"{outcome.code.name}: {outcome.message} {outcome.text[:80]!r}"
        assert outcome.field == field, f"{outcome.field}: {outcome.message}"
        for words in says:
            assert words in outcome.message, f"{words!r} is not in {outcome.message!r}"
        assert outcome.seconds < within_s, f"took {outcome.seconds:.1f} s"
        return outcome

    async def check_aftermath(self) -> None:
        """Nothing is held, and the next good request works and answers right."""
        await self.system.wait_until_nothing_is_held()
        outcome = await self.generate(user_request(image_part(circle()), text_part(QUESTION)))
        assert (outcome.code, outcome.text) == (grpc.StatusCode.OK, RIGHT_ANSWER), outcome.message
        await self.system.wait_until_nothing_is_held()

    async def close(self) -> None:
        await self.channel.close()


def failure(error: grpc.aio.AioRpcError, seconds: float = 0.0) -> Outcome:
    trailers = dict(error.trailing_metadata() or ())
    return Outcome(error.code(), error.details() or "", trailers, seconds=seconds)


def circle() -> bytes:
    """A picture that the small model knows the answer to."""
    picture = Image.new("RGB", (112, 112), (245, 245, 245))
    ImageDraw.Draw(picture).ellipse((32, 32, 80, 80), fill=(220, 30, 30))
    return png(picture)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def text_part(text: str) -> inference_pb2.ContentPart:
    return inference_pb2.ContentPart(text=text)


def image_part(data: bytes) -> inference_pb2.ContentPart:
    return inference_pb2.ContentPart(image=inference_pb2.Image(data=data))


def video_part(data: bytes) -> inference_pb2.ContentPart:
    return inference_pb2.ContentPart(video=inference_pb2.Video(data=data))


def frames_part(*frames: bytes, frames_per_second: float = 0.0) -> inference_pb2.ContentPart:
    video_frames = common_pb2.VideoFrames(frames=frames, frames_per_second=frames_per_second)
    return inference_pb2.ContentPart(video=inference_pb2.Video(frames=video_frames))


def message(role: str, *parts: inference_pb2.ContentPart) -> inference_pb2.ChatMessage:
    return inference_pb2.ChatMessage(role=role, parts=parts)


def chat(*messages: inference_pb2.ChatMessage, **sampling: Any) -> inference_pb2.GenerateRequest:
    sampling.setdefault("max_tokens", 16)
    return inference_pb2.GenerateRequest(messages=messages, sampling=common_pb2.SamplingParameters(**sampling))


def user_request(*parts: inference_pb2.ContentPart, **sampling: Any) -> inference_pb2.GenerateRequest:
    return chat(message("user", *parts), **sampling)


def ask(text: str = "Count to three.", **sampling: Any) -> inference_pb2.GenerateRequest:
    return user_request(text_part(text), **sampling)
