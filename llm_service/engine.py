"""Engine: the loop that computes, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor

from llm_service.kv_export import ExportedPart
from llm_service.layer_exports import LayerExports
from llm_service.logprobs import TokenLogprob
from llm_service.runner import LaunchedStep, Runner
from llm_service.scheduler import Chunk, Scheduler
from llm_service.sequence import FinishReason, Sequence, SequenceState
from triptych.errors import InternalError, TriptychError, Unavailable
from triptych.telemetry.logs import REQUEST_ID
from triptych.telemetry.request_scope import request_of_walk

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepOutput:
    """What one step did for one sequence. The last output of a sequence has a finish_reason, kv_pages or an error.

    kv_pages: the prompt's pages of a prefill-only sequence that goes on elsewhere, or others from it,
    [num_pages, num_layers, 2, page_size, num_kv_heads, head_dim], on the host or the device; of those that leave in
    parts the last. kv_parts: parts before the last, in an output that has nothing else; it may come while the step is
    still computed.
    logprob: of the one token, where the request asked for it.
    """

    sequence: Sequence
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    kv_pages: Tensor | None = None
    error: TriptychError | None = None
    logprob: TokenLogprob | None = None
    kv_parts: tuple[ExportedPart, ...] = ()

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
    """Drain the inbox, schedule and launch a step, book and publish the tokens of the one before it, again.

    The runner says how many steps may be in flight beside the newest: 0 is the plain loop; with 1 the device computes
    while this thread books and schedules. A stop token is then seen one step late, and the surplus token is dropped.
    Other threads talk to it through the inbox alone. `publish` is called on the engine thread, with all outputs of a
    step in one list; it must hand them over and return.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        max_sequence_tokens: int,
        publish: Callable[[list[StepOutput]], None],
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.max_sequence_tokens = max_sequence_tokens
        self.counters = EngineCounters()
        self._publish = publish
        self._layer_exports = LayerExports(scheduler, self._publish_parts)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._is_stopping = False
        self._in_flight: deque[LaunchedStep] = deque()
        self._ready: Future[None] = Future()
        self.ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_ready(self) -> None:
        """Returns when the started engine has prepared its runner (compiled kernels, captured graphs); raises what
        kept it from it."""
        self._ready.result()

    def stop(self) -> None:
        """Ends the loop after its step and waits for it; sequences still inside fail with Unavailable. Idempotent."""
        self._inbox.put(self._stop)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self.ended.done()

    def add(self, *sequences: Sequence) -> None:
        """Queues sequences that each fit the cache and the context; their outputs come by `publish`."""
        self._inbox.put(lambda: self._add(sequences))

    def supply(self, embeddings: list[Tensor | None], index: int, embedding: Tensor) -> None:
        """Embedding number `index` of those that sequences share, added or not, has arrived, and is final."""
        self._inbox.put(lambda: embeddings.__setitem__(index, embedding))

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
        try:
            self.runner.prepare()
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        try:
            while not self._is_stopping:
                outputs = self._step()
                if outputs:
                    self._publish(outputs)
        finally:
            # By `stop`, by a device that is lost, or by a bug: whoever waits for tokens must hear of it.
            self.ended.set_result(None)

    def _step(self) -> list[StepOutput]:
        outputs: list[StepOutput] = []
        try:
            self._drain_inbox()
            self._run(self.scheduler.schedule(), outputs)
        except Exception as error:
            # Not the model but the bookkeeping failed: no sequence inside can be trusted, the next ones can.
            logger.exception("the engine's bookkeeping failed")
            self._in_flight.clear()
            self._is_stopping |= _is_fatal(error)
            outputs += [self._fail(sequence, error) for sequence in self._sequences()]
        return outputs

    def _drain_inbox(self) -> None:
        """Takes all that is there; waits for something when there is nothing to compute."""
        is_idle = self.scheduler.is_starved or not self.scheduler.has_work
        if is_idle and not self._in_flight:
            self._inbox.get()()
        while not self._is_stopping:
            try:
                message = self._inbox.get_nowait()
            except Empty:
                return
            message()

    def _run(self, chunks: list[Chunk], outputs: list[StepOutput]) -> None:
        """Launches the chunks, then books the steps that are not to be in flight any longer."""
        if not chunks:
            return self._collect(0, outputs)
        _stamp_started(chunks)
        try:
            step = self.runner.launch(chunks, self._layer_exports.watch_of(chunks))
        except Exception as error:
            return self._run_one_by_one(chunks, error, outputs)
        self._in_flight.append(step)
        for chunk in chunks:
            self.scheduler.advance(chunk)
        return self._collect(self.runner.num_steps_ahead, outputs)

    def _run_one_by_one(self, chunks: list[Chunk], error: Exception, outputs: list[StepOutput]) -> None:
        """Each chunk alone, when they failed together: one bad request must not take others with it."""
        self._collect(0, outputs)
        # What ended with its last token meanwhile has no next one.
        chunks = [chunk for chunk in chunks if chunk.sequence.state is SequenceState.RUNNING]
        if len(chunks) == 1:
            outputs.append(self._fail(chunks[0].sequence, error))
            return
        for chunk in chunks:
            self._run([chunk], outputs)
            self._collect(0, outputs)

    def _collect(self, num_kept: int, outputs: list[StepOutput]) -> None:
        """Waits for the oldest steps in flight, all but `num_kept`, and books their tokens."""
        while len(self._in_flight) > num_kept:
            step = self._in_flight.popleft()
            tokens = step.read()
            logprobs = step.logprobs()
            self.counters.num_steps += 1
            for chunk, token in zip(step.chunks, tokens, strict=True):
                # One that ended or was aborted after the launch takes nothing more.
                if chunk.sequence.state is SequenceState.FINISHED:
                    continue
                self.scheduler.publish(chunk)
                if not chunk.is_sampled and not chunk.sequence.has_all_embeddings:
                    chunk.sequence.pause_after(chunk.end)
                if chunk.sequence.kv_export is not None and not self._export_parts(chunk, outputs):
                    continue
                if token is not None:
                    outputs.append(self._accept(chunk, token, logprobs.get(chunk.sequence)))

    def _export_parts(self, chunk: Chunk, outputs: list[StepOutput]) -> bool:
        """Whether the sequence can go on: not when there is no memory for the copies."""
        try:
            parts = self.scheduler.export_parts(chunk)
        except Exception as error:
            outputs.append(self._fail(chunk.sequence, error))
            return False
        if parts:
            outputs.append(StepOutput(chunk.sequence, kv_parts=tuple(parts)))
        return True

    def _publish_parts(self, exported: list[tuple[Sequence, list[ExportedPart]]]) -> None:
        self._publish([StepOutput(sequence, kv_parts=tuple(parts)) for sequence, parts in exported])

    def _accept(self, chunk: Chunk, token: int, logprob: TokenLogprob | None) -> StepOutput:
        """Books the next token of a sequence; when that fails, for want of memory for its pages, it ends alone."""
        try:
            return self._book(chunk.sequence, chunk.end, token, logprob)
        except Exception as error:
            return self._fail(chunk.sequence, error)

    def _book(self, sequence: Sequence, index: int, token: int, logprob: TokenLogprob | None) -> StepOutput:
        sequence.receive_token(index, token)
        self._count(sequence)
        finish_reason = self.finish_reason(sequence, index + 1)
        is_handed_over = sequence.is_prefill_only and (finish_reason is None or sequence.is_prompt_shared)
        kv_pages = self.scheduler.export_rest(sequence) if is_handed_over else None
        output = StepOutput(sequence, (token,), finish_reason, kv_pages, logprob=logprob)
        if output.is_last:
            sequence.drop_pending()
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

    def finish_reason(self, sequence: Sequence, num_tokens: int | None = None) -> FinishReason | None:
        """Why the sequence ends with the last of its first `num_tokens` tokens (all of them), if it does."""
        num_tokens = num_tokens or sequence.num_tokens
        if sequence.token_ids[num_tokens - 1] in self.runner.sampler.stop_token_ids(sequence):
            return FinishReason.STOP
        if sequence.form is not None and sequence.form.is_complete:
            return FinishReason.STOP
        is_at_max_tokens = num_tokens - sequence.prompt.num_tokens >= sequence.sampling.max_tokens
        if is_at_max_tokens or num_tokens >= self.max_sequence_tokens:
            return FinishReason.LENGTH
        return None

    def _add(self, sequences: tuple[Sequence, ...]) -> None:
        now = time.monotonic()
        for sequence in sequences:
            sequence.added_s = now
            num_new_tokens = 1 if sequence.is_prefill_only else sequence.sampling.max_tokens
            sequence.token_limit = min(sequence.prompt.num_tokens + num_new_tokens, self.max_sequence_tokens)
            self.scheduler.add(sequence)

    def _remove(self, sequence: Sequence) -> None:
        if sequence.state is not SequenceState.FINISHED:
            self.scheduler.remove(sequence)

    def _fail(self, sequence: Sequence, error: Exception) -> StepOutput:
        self._remove(sequence)
        if not isinstance(error, TriptychError):
            logger.error(
                "request %s failed in the engine",
                sequence.request_id,
                exc_info=error,
                extra={REQUEST_ID: request_of_walk(sequence.request_id)},
            )
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


def _is_fatal(error: Exception) -> bool:
    """After such an error the process can't use its device any more: the engine ends, and the actor is replaced."""
    return isinstance(error, torch.AcceleratorError)
