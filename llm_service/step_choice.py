"""How decode steps are computed, where only a measurement says what is quickest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from triptych.kernels.decode_attention import MAX_SPLITS, DecodePlan
from triptych.kernels.skinny_linear import SkinnyTiling
from triptych.models.qwen2_5_vl.fused import BatchPlan, SkinnyPlan

logger = logging.getLogger(__name__)

# A candidate has to be better by so much: noise must not decide.
_LEAST_GAIN = 0.004
_MIB = 1 << 20


@dataclass(frozen=True)
class StepChoice:
    """attention and skinny: by shape when None. pdl: see `triptych.kernels.launch`. batch: the linears of more tokens,
    through cuBLAS when None."""

    attention: DecodePlan | None
    skinny: SkinnyPlan | None
    pdl: bool
    batch: BatchPlan | None = None


Move = Callable[[StepChoice], StepChoice]


def quickest(base: StepChoice, moves: Seq[Move], time_ms: Callable[[StepChoice], float], limit_s: float) -> StepChoice:
    """Tries one move after the other and keeps those that help, until the time is over; a move that fails is none."""
    started_s = time.monotonic()
    best, best_ms = base, time_ms(base)
    for move in moves:
        if time.monotonic() - started_s > limit_s:
            logger.info("no time left to tune decode steps")
            break
        candidate = move(best)
        if candidate == best:
            continue
        try:
            candidate_ms = time_ms(candidate)
        except Exception as error:
            logger.warning("a decode step can't be computed with %s: %s", candidate, str(error)[:300])
            continue
        is_better = candidate_ms < best_ms * (1.0 - _LEAST_GAIN)
        logger.debug("a decode step takes %.3f ms, at best %.3f before, with %s", candidate_ms, best_ms, candidate)
        if is_better:
            best, best_ms = candidate, candidate_ms
    return best


def moves_of_one() -> list[Move]:
    """What may help a step of one token: more of a weight on its way, or fetched before it is needed. What helped on an
    H200 is where the search begins (`FusedLanguageModel.skinny_plan`, `choose_plan`)."""
    return [
        _upcoming(16 * _MIB),
        _skinny(qkv=SkinnyTiling("vector", 2, 1024, 2, 2), o=SkinnyTiling("vector", 2, 1024, 2, 2)),
        _skinny(down=SkinnyTiling("vector", 2, 1024, 4, 2)),
        _stages(3),
    ]


def moves_of_many() -> list[Move]:
    """What may help a batch: other numbers of splits, another depth of pipelines, and linears through cuBLAS alone."""
    return [_without_batch, _doubled_splits, _halved_splits, _stages(3)]


def nearest(batch: int, tuned: Mapping[int, StepChoice]) -> int | None:
    """The smallest tuned batch size that is not below, if there is one."""
    return min((size for size in tuned if size >= batch), default=None)


def _skinny(**changes: SkinnyTiling) -> Move:
    def move(choice: StepChoice) -> StepChoice:
        skinny = choice.skinny or SkinnyPlan()
        return replace(choice, skinny=replace(skinny, **changes))  # type: ignore[arg-type]

    return move


def _upcoming(num_bytes: int) -> Move:
    def move(choice: StepChoice) -> StepChoice:
        return replace(choice, skinny=replace(choice.skinny or SkinnyPlan(), upcoming_bytes=num_bytes))

    return move


def _without_batch(choice: StepChoice) -> StepChoice:
    return replace(choice, batch=None)


def _stages(num_stages: int) -> Move:
    return _planned(lambda plan: replace(plan, tiling=replace(plan.tiling, num_stages=num_stages)))


def _planned(change: Callable[[DecodePlan], DecodePlan]) -> Move:
    def move(choice: StepChoice) -> StepChoice:
        return choice if choice.attention is None else replace(choice, attention=change(choice.attention))

    return move


_halved_splits = _planned(lambda plan: replace(plan, num_splits=max(1, plan.num_splits // 2)))
_doubled_splits = _planned(lambda plan: replace(plan, num_splits=min(2 * plan.num_splits, MAX_SPLITS)))
