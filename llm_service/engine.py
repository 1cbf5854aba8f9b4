"""Engine: the loop that computes, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from torch import Tensor

from llm_service.model_runner import ModelRunner
from llm_service.scheduler import Chunk, Scheduler
from llm_service.sequence import FinishReason, Sequence, SequenceState
from triptych.errors import InternalError, TriptychError, Unavailable

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepOutput:
    """What one step did for one sequence. The last output of a sequence has a finish_reason, kv_pages or an error.

    kv_pages: the prompt's pages of a prefill-only sequence that goes on elsewhere,
    [num_pages, num_layers, 2, page_size, num_kv_heads, head_dim], on the host.
    """

    sequence: Sequence
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    kv_pages: Tensor | None = None
    error: TriptychError | None = None

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.kv_pages is not None or self.error is not None


@dataclass
class EngineCounters:
    """Since the start. Written by the engine thread, read by any."""

    num_steps: int = 0
    num_finished: int = 0
    num_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    num_generated_tokens: int = 0


class Engine:
    """Drain the inbox, schedule, run, publish, again.

    Other threads talk to it through the inbox alone. `publish` is called on the engine thread, with all outputs of a
    step in one list; it must hand them over and return.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        max_sequence_tokens: int,
        publish: Callable[[list[StepOutput]], None],
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.max_sequence_tokens = max_sequence_tokens
        self.counters = EngineCounters()
        self._publish = publish
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop after its step and waits for it; sequences still inside fail with Unavailable. Idempotent."""
        self._inbox.put(self._stop)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence that fits the cache and the context; its outputs come by `publish`."""
        self._inbox.put(lambda: self._add(sequence))

    def abort(self, sequence: Sequence) -> None:
        """Ends a sequence in whatever state, without a further output; one that ended already is nothing."""
        self._inbox.put(lambda: self._remove(sequence))

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Runs `function` on the engine thread between two steps, where it may use the pool and the cache."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._inbox.put(run)
        return future

    def _loop(self) -> None:
        while not self._is_stopping:
            outputs = self._step()
            if outputs:
                self._publish(outputs)

    def _step(self) -> list[StepOutput]:
        try:
            self._drain_inbox()
            return self._run(self.scheduler.schedule())
        except Exception as error:
            # Not the model but the bookkeeping failed: no sequence inside can be trusted, the next ones can.
            logger.exception("the engine's bookkeeping failed")
            return [self._fail(sequence, error) for sequence in self._sequences()]

    def _drain_inbox(self) -> None:
        """Takes all that is there; waits for something when there is nothing to compute."""
        if not self.scheduler.has_work:
            self._inbox.get()()
        while not self._is_stopping:
            try:
                message = self._inbox.get_nowait()
            except Empty:
                return
            message()

    def _run(self, chunks: list[Chunk]) -> list[StepOutput]:
        """Computes the chunks. When that fails, each runs again alone: one bad request must not take others with it."""
        if not chunks:
            return []
        _stamp_started(chunks)
        try:
            tokens = self.runner.run(chunks)
        except Exception as error:
            if len(chunks) > 1:
                return [output for chunk in chunks for output in self._run([chunk])]
            return [self._fail(chunks[0].sequence, error)]
        self.counters.num_steps += 1
        for chunk in chunks:
            self.scheduler.advance(chunk)
        return [
            self._accept(chunk.sequence, token)
            for chunk, token in zip(chunks, tokens, strict=True)
            if token is not None
        ]

    def _accept(self, sequence: Sequence, token: int) -> StepOutput:
        """Books the next token of a sequence; when that fails, for want of memory for its pages, it ends alone."""
        try:
            return self._append(sequence, token)
        except Exception as error:
            return self._fail(sequence, error)

    def _append(self, sequence: Sequence, token: int) -> StepOutput:
        sequence.token_ids.append(token)
        self._count(sequence)
        finish_reason = self.finish_reason(sequence)
        is_handed_over = sequence.is_prefill_only and finish_reason is None
        kv_pages = self.scheduler.export_pages(sequence) if is_handed_over else None
        output = StepOutput(sequence, (token,), finish_reason, kv_pages)
        if output.is_last:
            sequence.finished_s = time.monotonic()
            self.counters.num_finished += 1
            self._remove(sequence)
        return output

    def _count(self, sequence: Sequence) -> None:
        self.counters.num_generated_tokens += 1
        if sequence.first_token_s == 0.0:
            sequence.first_token_s = time.monotonic()
            self.counters.num_prompt_tokens += sequence.prompt.num_tokens
            self.counters.num_cached_prompt_tokens += sequence.num_cached_prompt_tokens

    def finish_reason(self, sequence: Sequence) -> FinishReason | None:
        """Why the sequence ends with its newest token, if it does."""
        if sequence.token_ids[-1] in self.runner.sampler.stop_token_ids(sequence):
            return FinishReason.STOP
        is_at_max_tokens = sequence.num_generated_tokens >= sequence.sampling.max_tokens
        if is_at_max_tokens or sequence.num_tokens >= self.max_sequence_tokens:
            return FinishReason.LENGTH
        return None

    def _add(self, sequence: Sequence) -> None:
        sequence.added_s = time.monotonic()
        self.scheduler.add(sequence)

    def _remove(self, sequence: Sequence) -> None:
        if sequence.state is not SequenceState.FINISHED:
            self.scheduler.remove(sequence)

    def _fail(self, sequence: Sequence, error: Exception) -> StepOutput:
        self._remove(sequence)
        if not isinstance(error, TriptychError):
            logger.error("request %s failed in the engine", sequence.request_id, exc_info=error)
            error = InternalError(f"the engine failed on request {sequence.request_id}: {type(error).__name__}")
        return StepOutput(sequence, error=error)

    def _stop(self) -> None:
        self._is_stopping = True
        error = Unavailable("the actor is stopping")
        outputs = [self._fail(sequence, error) for sequence in self._sequences()]
        if outputs:
            self._publish(outputs)

    def _sequences(self) -> list[Sequence]:
        return [*self.scheduler.running, *self.scheduler.waiting]


def _stamp_started(chunks: list[Chunk]) -> None:
    now = time.monotonic()
    for chunk in chunks:
        chunk.sequence.started_s = chunk.sequence.started_s or now
