"""SequenceRuns: the sequences inside the engine, seen from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from llm_service.admission import TokenHold
from llm_service.engine import Engine, StepOutput
from llm_service.kv_export import ExportedPart
from llm_service.sequence import FinishReason, Sequence
from llm_service.steps import StepChannel

TakeParts = Callable[[Seq[ExportedPart]], None]


@dataclass(eq=False)
class Run:
    """One sequence. has_begun: its first token came; ended: its last output, or the error; num_tokens: so many came;
    take_parts: where its KV pages go while it is prefilled."""

    sequence: Sequence
    hold: TokenHold
    channel: StepChannel | None
    ended: asyncio.Future[StepOutput]
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)
    num_tokens: int = 0
    take_parts: TakeParts | None = None

    def take(self, output: StepOutput) -> None:
        if self.ended.done():
            return
        if output.kv_parts:
            assert self.take_parts is not None
            self.take_parts(output.kv_parts)
            return
        self.hold.release()
        self.num_tokens += len(output.token_ids)
        self.has_begun.set()
        if output.error is not None:
            self.ended.set_exception(output.error)
            return
        if self.channel is not None:
            logprobs = () if output.logprob is None else (output.logprob,)
            self.channel.put(output.token_ids, output.finish_reason, self.sequence.choice_index, logprobs)
        if output.is_last:
            self.ended.set_result(output)


class SequenceRuns:
    """Hands what the engine's thread publishes to whoever waits. Belongs to one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._runs: dict[Sequence, Run] = {}

    async def run(
        self,
        engine: Engine,
        sequences: Seq[Sequence],
        hold: TokenHold,
        channel: StepChannel | None,
        take_parts: TakeParts | None = None,
    ) -> list[Run]:
        """The answers to one prompt, from beginning to end; their tokens go to the channel on the way. Raises the error
        of the first that fails. Leaving takes all of them out of the engine.

        Those without pages of their own begin when the first has its first token: its prompt is in the prefix cache.
        """
        runs = [
            Run(sequence, hold, channel, self._loop.create_future(), take_parts=take_parts) for sequence in sequences
        ]
        self._runs |= {run.sequence: run for run in runs}
        try:
            engine.add(runs[0].sequence)
            if len(runs) > 1 and sequences[-1].parked_pages is None:
                await runs[0].has_begun.wait()
            for run in runs[1:]:
                if not run.ended.done():
                    engine.add(run.sequence)
            await asyncio.gather(*(run.ended for run in runs))
            return runs
        finally:
            for run in runs:
                del self._runs[run.sequence]
                engine.abort(run.sequence)

    def publish(self, outputs: list[StepOutput]) -> None:
        """On the engine thread."""
        try:
            self._loop.call_soon_threadsafe(self._on_step, outputs)
        except RuntimeError:
            # The loop was closed under a stage that nobody closed; there is nobody left to tell.
            return

    def tell_aborted(self, request_id: str) -> None:
        """Streams of the request say ABORTED; ending it is another's work."""
        for sequence, run in self._runs.items():
            if sequence.request_id == request_id and run.channel is not None:
                run.channel.put((), FinishReason.ABORTED, sequence.choice_index)

    def abort_choice(self, engine: Engine, request_id: str, choice_index: int) -> None:
        """Ends one answer of a request; the others go on. An unknown one is nothing."""
        for sequence, run in self._runs.items():
            if sequence.request_id == request_id and sequence.choice_index == choice_index:
                engine.abort(sequence)
                run.take(StepOutput(sequence, finish_reason=FinishReason.ABORTED))

    def _on_step(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            run = self._runs.get(output.sequence)
            if run is not None:
                run.take(output)
