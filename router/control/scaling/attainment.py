"""Attainment: which recent answers came in time, and which stage made the others late."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from router.control.membership import StageName
from triptych.config.scaling import ScalingSection

WINDOW_S = 60.0
# Of fewer answers a share says little: one late one of ten would be a failure to attain 95 %.
FEWEST_ANSWERS = 20


@dataclass(frozen=True)
class AnswerTimes:
    """How one answer went. encode_s and prefill_s: from when the stage was asked to when it was done.

    tpot_s: None for an answer of one token. is_split: prefilled and decoded by different actors.
    """

    prompt_tokens: int
    ttft_s: float
    tpot_s: float | None
    encode_s: float = 0.0
    prefill_s: float = 0.0
    is_split: bool = True


def late_stages(answer: AnswerTimes, settings: ScalingSection) -> tuple[StageName, ...]:
    """The stages that made an answer late: of encode and prefill the one that took longer; decode by its own bound."""
    prefill = StageName.PREFILL if answer.is_split else StageName.PREFILL_DECODE
    decode = StageName.DECODE if answer.is_split else StageName.PREFILL_DECODE
    stages = []
    if answer.ttft_s > settings.ttft_s + settings.ttft_per_prompt_token_s * answer.prompt_tokens:
        stages.append(StageName.ENCODER if answer.encode_s > answer.prefill_s else prefill)
    if answer.tpot_s is not None and answer.tpot_s > settings.tpot_s:
        stages.append(decode)
    return tuple(stages)


class Attainment:
    """Of the answers of the last WINDOW_S seconds."""

    def __init__(self, settings: ScalingSection) -> None:
        self._settings = settings
        self._answers: deque[tuple[float, tuple[StageName, ...]]] = deque()
        self._num_late = dict.fromkeys(StageName, 0)

    def note(self, now_s: float, answer: AnswerTimes) -> bool:
        """An answer is complete; whether it was in time."""
        late = late_stages(answer, self._settings)
        self._answers.append((now_s, late))
        for stage in late:
            self._num_late[stage] += 1
        return not late

    def of(self, stage: StageName, now_s: float) -> float | None:
        """Share of the answers that `stage` did not make late; None when there were too few."""
        while self._answers and self._answers[0][0] < now_s - WINDOW_S:
            for late in self._answers.popleft()[1]:
                self._num_late[late] -= 1
        if len(self._answers) < FEWEST_ANSWERS:
            return None
        return 1.0 - self._num_late[stage] / len(self._answers)
