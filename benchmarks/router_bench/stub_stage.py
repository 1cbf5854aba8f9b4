"""A stage that computes nothing: an LLM actor whose tokens come at once, or at a pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from triptych.rpc.server import RpcServer
from triptych.v1 import common_pb2, language_pb2, language_pb2_grpc

TOKEN_ID = 300
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass
class _Running:
    """An answer under way, and the Decode call that waits for its end."""

    request_id: str
    num_left: int
    done: asyncio.Future[None]


class StubLanguageStage(language_pb2_grpc.LanguageServiceServicer):
    """Role prefill_decode. All running answers of a router get one token a step, in one message, as from an engine."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._running: dict[str, list[_Running]] = {}
        self._wanted = asyncio.Event()

    async def Decode(self, request: language_pb2.DecodeRequest, context: Any) -> language_pb2.DecodeResponse:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer = _Running(request.request_id, request.sampling.max_tokens, done)
        self._running.setdefault(request.router_id, []).append(answer)
        self._wanted.set()
        await done
        return language_pb2.DecodeResponse(
            finish_reason=common_pb2.FINISH_REASON_LENGTH, num_tokens=request.sampling.max_tokens
        )

    async def StreamSteps(
        self, request: language_pb2.StreamStepsRequest, context: Any
    ) -> AsyncIterator[language_pb2.StreamStepsResponse]:
        answers = self._running.setdefault(request.router_id, [])
        next_s = 0.0
        while True:
            while not answers:
                self._wanted.clear()
                await self._wanted.wait()
            # Steps keep their pace whatever sending takes; those that come late are not made up for.
            next_s = max(next_s, time.monotonic()) + self._step_s
            yield language_pb2.StreamStepsResponse(outputs=[_step(answer) for answer in answers])
            for answer in answers:
                if not answer.num_left and not answer.done.done():
                    answer.done.set_result(None)
            answers[:] = [answer for answer in answers if answer.num_left]
            await asyncio.sleep(max(next_s - time.monotonic(), 0.0))


def _step(answer: _Running) -> language_pb2.SequenceOutput:
    answer.num_left -= 1
    finish_reason = common_pb2.FINISH_REASON_UNSPECIFIED if answer.num_left else common_pb2.FINISH_REASON_LENGTH
    return language_pb2.SequenceOutput(request_id=answer.request_id, token_ids=[TOKEN_ID], finish_reason=finish_reason)


async def serve_stub(step_s: float) -> tuple[RpcServer, str]:
    """The server and its endpoint."""
    server = RpcServer("127.0.0.1", 0, _MAX_MESSAGE_BYTES)
    server.add(
        language_pb2_grpc.add_LanguageServiceServicer_to_server,
        StubLanguageStage(step_s),
        language_pb2.DESCRIPTOR.services_by_name["LanguageService"].full_name,
    )
    return server, f"127.0.0.1:{await server.start()}"
