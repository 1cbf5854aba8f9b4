"""Demand: what requests asked of the stages since the router began, and how their answers went."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from router.control.scaling.attainment import AnswerTimes, Attainment
from triptych.config.scaling import ScalingSection
from triptych.v1 import inference_pb2


@dataclass(frozen=True)
class Work:
    """Patches to encode and prompt tokens to prefill."""

    num_patches: int = 0
    num_prompt_tokens: int = 0


class Demand:
    """Told by the dispatcher, read by the scaling loop; both live on one event loop. Totals only grow."""

    def __init__(self, settings: ScalingSection, clock: Callable[[], float] = time.monotonic) -> None:
        self.attainment = Attainment(settings)
        self.arrived = Work()
        self._clock = clock

    def note_arrival(self, num_patches: int, num_prompt_tokens: int) -> None:
        """A request was prepared, and wants this of the stages."""
        total = self.arrived
        self.arrived = Work(total.num_patches + num_patches, total.num_prompt_tokens + num_prompt_tokens)

    def note_answer(self, summary: inference_pb2.GenerateSummary, stream_s: float) -> None:
        """An answer is complete. stream_s: from its first token to its last."""
        timings, route = summary.timings, summary.route
        num_later = summary.usage.completion_tokens // max(1, len(summary.choices)) - 1
        self.attainment.note(
            self._clock(),
            AnswerTimes(
                prompt_tokens=summary.usage.prompt_tokens,
                ttft_s=timings.time_to_first_token_s,
                tpot_s=stream_s / num_later if num_later > 0 else None,
                encode_s=timings.encode_queue_s + timings.encode_s,
                prefill_s=timings.prefill_queue_s + timings.prefill_s,
                is_split=route.prefill_actor != route.decode_actor,
            ),
        )
