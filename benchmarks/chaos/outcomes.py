"""What became of each request, held against the answer that it gets undisturbed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.chaos.requests import ChaosRequest, Fate
from triptych.errors import DeadlineExceeded, InvalidRequest, Overloaded, TriptychError, Unavailable

# What an accepted request may be told honestly when it can't be answered.
HONEST = (Overloaded, Unavailable, DeadlineExceeded)


@dataclass(frozen=True)
class Outcome:
    """token_ids: all that came, in order, as the client saw them. text: likewise. error: what ended it, if anything."""

    request: ChaosRequest
    token_ids: tuple[int, ...]
    text: str
    error: TriptychError | None
    attempts: int
    seconds: float
    is_cancelled: bool = False


def verdict(outcome: Outcome, undisturbed: Outcome) -> str:
    """`right`, `cancelled`, `refused: ...` for a bad request, `honest: ...` for a typed error; anything else is wrong.

    What came of an answer that broke off must be the beginning of the undisturbed one: nothing doubled or missing.
    """
    expected = undisturbed.token_ids
    if outcome.token_ids != expected[: len(outcome.token_ids)] or not undisturbed.text.startswith(outcome.text):
        return "WRONG: tokens differ from the undisturbed answer"
    if outcome.is_cancelled:
        return "cancelled"
    if outcome.request.fate is Fate.BAD:
        is_refused = isinstance(outcome.error, InvalidRequest)
        return "refused: InvalidRequest" if is_refused else f"WRONG: a bad request ended with {outcome.error!r}"
    if outcome.error is None:
        is_whole = outcome.token_ids == expected and outcome.text == undisturbed.text
        return "right" if is_whole else "WRONG: the answer is not whole"
    if isinstance(outcome.error, HONEST):
        return f"honest: {type(outcome.error).__name__}"
    return f"WRONG: {type(outcome.error).__name__}: {outcome.error}"


def summary_lines(outcomes: Sequence[Outcome], verdicts: Sequence[str], num_kills: int) -> list[str]:
    counts = Counter(verdict.split(": tokens")[0] for verdict in verdicts)
    resumed = [outcome for outcome in outcomes if outcome.attempts > 1]
    lines = [f"{len(outcomes)} requests, {num_kills} actors killed"]
    lines += [f"  {count:5d}  {name}" for name, count in counts.most_common()]
    most = max((outcome.attempts for outcome in outcomes), default=0)
    lines.append(f"  {len(resumed):5d}  begun again at least once, {most} attempts at most")
    return lines
