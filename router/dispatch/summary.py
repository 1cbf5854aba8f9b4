"""The last message of an answer: why it ended, what it used, where its time went, who worked on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from router.dispatch.choice_answer import ChoiceAnswer
from router.dispatch.generation import Generation
from router.dispatch.prepared_request import PreparedRequest
from triptych.v1 import common_pb2, inference_pb2


@dataclass
class AnswerClock:
    """When a request began and when its tokens came, on the clock of time.monotonic."""

    begun_at: float
    admission_s: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0

    def note_tokens(self, now: float) -> None:
        """Tokens came."""
        self.first_token_at = self.first_token_at or now
        self.last_token_at = now


def make_summary(
    model_name: str,
    request: PreparedRequest,
    generation: Generation,
    answers: Sequence[ChoiceAnswer],
    clock: AnswerClock,
) -> inference_pb2.GenerateSummary:
    """Figures of the stages are those of the walk that finished the answer."""
    summary = inference_pb2.GenerateSummary(
        request_id=request.request_id,
        model=model_name,
        finish_reason=answers[0].finish_reason,
        choices=[answer.summary() for answer in answers],
        usage=common_pb2.Usage(
            prompt_tokens=len(request.token_ids),
            completion_tokens=sum(answer.num_tokens for answer in answers),
            media_tokens=request.num_media_tokens,
        ),
    )
    timings, route, record = summary.timings, summary.route, generation.record
    timings.prepare_s = request.prepare_s
    timings.admission_s = clock.admission_s
    if record is not None:
        summary.usage.cached_prompt_tokens = min(record.cached_prompt_tokens, len(request.token_ids))
        record.fill_timings(timings)
        record.fill_route(route)
    if clock.first_token_at:
        timings.time_to_first_token_s = clock.first_token_at - clock.begun_at
        # An answer that a stop string ended has no figure of the decode actor.
        timings.decode_s = timings.decode_s or clock.last_token_at - clock.first_token_at
    route.attempts = generation.num_attempts
    timings.total_s = time.monotonic() - clock.begun_at
    return summary
