"""StepStreams: the new tokens of every engine step, on their way to the routers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager

from llm_service.logprobs import TokenLogprob
from llm_service.sequence import FinishReason
from triptych.errors import TriptychError, Unavailable
from triptych.v1 import language_pb2

OnLost = Callable[[TriptychError], None]


class StepChannel:
    """The tokens of one request's answers. on_lost: told once when they can't be delivered any more."""

    def __init__(self, router: _Router, request_id: str, on_lost: OnLost, num_choices: int) -> None:
        self.request_id = request_id
        self.on_lost = on_lost
        self.has_begun = False
        self._router = router
        self._undelivered = set(range(num_choices))
        self._is_delivered = asyncio.Event()

    def put(
        self,
        token_ids: Sequence[int],
        finish_reason: FinishReason | None = None,
        choice_index: int = 0,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> None:
        """Goes out with the next message. Never waits: tokens of a reader that is behind join those before them."""
        self._router.put((self.request_id, choice_index), token_ids, finish_reason, logprobs)

    async def wait_delivered(self) -> None:
        """Returns when the messages with the finish reasons were written."""
        await self._is_delivered.wait()

    def mark_delivered(self, choice_index: int) -> None:
        self._undelivered.discard(choice_index)
        if not self._undelivered:
            self._is_delivered.set()


# A request and which of its answers.
_Key = tuple[str, int]


class _Router:
    """What waits for one router. One reader at a time; what it has not taken is joined by answer."""

    def __init__(self) -> None:
        self.channels: dict[str, StepChannel] = {}
        self.pending: dict[_Key, language_pb2.SequenceOutput] = {}
        self.changed = asyncio.Event()
        self.reader: object | None = None
        self.timer: asyncio.TimerHandle | None = None

    def put(
        self,
        key: _Key,
        token_ids: Sequence[int],
        finish_reason: FinishReason | None,
        logprobs: Sequence[TokenLogprob],
    ) -> None:
        output = self.pending.get(key)
        if output is None:
            request_id, choice_index = key
            output = language_pb2.SequenceOutput(request_id=request_id, choice_index=choice_index)
            self.pending[key] = output
        output.token_ids.extend(token_ids)
        if logprobs:
            output.logprobs.extend(logprob.to_proto() for logprob in logprobs)
        if finish_reason is not None:
            output.finish_reason = finish_reason.value
        self.changed.set()

    def drop(self, request_id: str, unfinished_only: bool = False) -> None:
        """Tokens of a request that failed need not go out; the word that it was aborted must."""
        for key, output in list(self.pending.items()):
            if output.request_id == request_id and not (unfinished_only and output.finish_reason):
                del self.pending[key]

    def lose(self, error: TriptychError, begun_only: bool) -> None:
        """Fails the requests whose tokens may have been lost on the way; or all of them."""
        for channel in list(self.channels.values()):
            if channel.has_begun or not begun_only:
                self.drop(channel.request_id)
                channel.on_lost(error)


class StepStreams:
    """One stream a router id, one message a step.

    When a stream breaks, nobody knows which tokens still arrived: requests that have sent some fail with Unavailable
    (their router resumes them), the others wait `reconnect_grace_s` for a new stream under the same id. Memory is
    bounded by the tokens of the running requests, however slow the reader.
    """

    def __init__(self, reconnect_grace_s: float) -> None:
        self._reconnect_grace_s = reconnect_grace_s
        self._routers: dict[str, _Router] = {}
        self._is_closed = False

    @contextmanager
    def open(self, router_id: str, request_id: str, on_lost: OnLost, num_choices: int = 1) -> Iterator[StepChannel]:
        """The channel of a request, for the body. Its stream may come a little later than the request itself."""
        router = self._router(router_id)
        channel = router.channels[request_id] = StepChannel(router, request_id, on_lost, num_choices)
        router.drop(request_id)  # of a call under the same id that this one follows
        if router.reader is None:
            self._expect_reader(router_id, router)
        try:
            yield channel
        finally:
            if router.channels.get(request_id) is channel:
                del router.channels[request_id]
                router.drop(request_id, unfinished_only=True)
            self._forget_unused(router_id, router)

    async def read(self, router_id: str) -> AsyncGenerator[language_pb2.StreamStepsResponse, None]:
        """The router's messages for as long as it listens; a second reader takes the place of the first."""
        router = self._router(router_id)
        if router.reader is not None:
            router.lose(_lost("was opened a second time"), begun_only=True)
        reader = router.reader = object()
        if router.timer is not None:
            router.timer.cancel()
        router.changed.set()  # wakes a reader before this one, to see that it was replaced
        try:
            while router.reader is reader and not self._is_closed:
                if not router.pending:
                    router.changed.clear()
                    await router.changed.wait()
                    continue
                outputs, router.pending = list(router.pending.values()), {}
                _mark_begun(router, outputs)
                yield language_pb2.StreamStepsResponse(outputs=outputs)
                _mark_delivered(router, outputs)
        finally:
            if router.reader is reader:
                router.reader = None
                router.lose(_lost("broke"), begun_only=True)
                self._expect_reader(router_id, router)
                self._forget_unused(router_id, router)

    def close(self) -> None:
        """Ends all streams."""
        self._is_closed = True
        for router in self._routers.values():
            if router.timer is not None:
                router.timer.cancel()
            router.changed.set()

    def _router(self, router_id: str) -> _Router:
        return self._routers.setdefault(router_id, _Router())

    def _expect_reader(self, router_id: str, router: _Router) -> None:
        if router.timer is not None:
            router.timer.cancel()
        error = _lost(f"was not opened for {self._reconnect_grace_s:g} s")
        loop = asyncio.get_running_loop()
        router.timer = loop.call_later(self._reconnect_grace_s, lambda: router.lose(error, begun_only=False))

    def _forget_unused(self, router_id: str, router: _Router) -> None:
        if router.reader is None and not router.channels and self._routers.get(router_id) is router:
            del self._routers[router_id]
            if router.timer is not None:
                router.timer.cancel()


def _mark_begun(router: _Router, outputs: Sequence[language_pb2.SequenceOutput]) -> None:
    for output in outputs:
        channel = router.channels.get(output.request_id)
        if channel is not None:
            channel.has_begun = True


def _mark_delivered(router: _Router, outputs: Sequence[language_pb2.SequenceOutput]) -> None:
    for output in outputs:
        channel = router.channels.get(output.request_id)
        if channel is not None and output.finish_reason:
            channel.mark_delivered(output.choice_index)


def _lost(what: str) -> Unavailable:
    return Unavailable(f"the router's step stream {what}: tokens can't be delivered")
