"""Mode auto: whether a request's pictures go to the encode stage, or to the tower that its LLM actor carries."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EncodeReason(StrEnum):
    """Why a request was encoded where it was; a label of metrics and of the response's route."""

    NO_MEDIA = "no_media"
    # There was no choice: the mode, a stage without actors, an LLM actor without a tower.
    NO_TOWER = "no_tower"
    NO_ENCODER = "no_encoder"
    # Encoders hold all of it already.
    CACHED = "cached"
    # The LLM actor has nothing else to do, and the hop to an encoder would cost more than it saves.
    IDLE_LANGUAGE_ACTOR = "idle_language_actor"
    # So little to encode that the hop costs more than the running answers lose.
    FEW_PATCHES = "few_patches"
    # Encoders are so far behind that the request is sooner done without them.
    ENCODER_QUEUE = "encoder_queue"
    # Answers that run at the LLM actor would stand still while it encodes.
    RUNNING_ANSWERS = "running_answers"
    # The LLM actor's own tower has a queue.
    LANGUAGE_QUEUE = "language_queue"
    # Two places for several pictures, or encoders that are quicker.
    FASTER_ENCODERS = "faster_encoders"


@dataclass(frozen=True)
class EncodeCosts:
    """Seconds, measured on earlier requests. hop_s: of the encode stage beside encoding: a call and a transfer."""

    encoder_s_per_patch: float
    language_s_per_patch: float
    hop_s: float


@dataclass(frozen=True)
class EncodeContext:
    """The request and the actors that it would go to, at this moment.

    num_uncached_patches: not held by encoders. num_encoders: that could share the work; encoder_backlog_patches: of the
    one that has the least to do. language_backlog_patches: which the LLM actor's own tower has before it.
    num_running: answers under way at the LLM actor. stall_share: how much a running answer is slowed while the tower
    of its actor works, 1 when it stands still.
    """

    num_items: int
    num_patches: int
    num_uncached_patches: int
    num_encoders: int
    encoder_backlog_patches: int
    has_tower: bool
    language_backlog_patches: int
    num_running: int
    stall_share: float


@dataclass(frozen=True)
class EncodeChoice:
    uses_encoders: bool
    reason: EncodeReason


def choose_encode_place(context: EncodeContext, costs: EncodeCosts) -> EncodeChoice:
    """The place with the smaller sum of delays: the request's own, and those of the answers that it would slow."""
    if context.num_patches == 0:
        return EncodeChoice(False, EncodeReason.NO_MEDIA)
    if not context.has_tower:
        return EncodeChoice(True, EncodeReason.NO_TOWER)
    if context.num_encoders == 0:
        return EncodeChoice(False, EncodeReason.NO_ENCODER)
    if context.num_uncached_patches == 0:
        return EncodeChoice(True, EncodeReason.CACHED)
    own_s = context.num_patches * costs.language_s_per_patch
    language_queue_s = context.language_backlog_patches * costs.language_s_per_patch
    stalled_s = context.stall_share * context.num_running * own_s
    encoder_queue_s = context.encoder_backlog_patches * costs.encoder_s_per_patch
    # Pictures of one request go to several encoders at once.
    num_shares = min(context.num_items, context.num_encoders)
    encoder_s = encoder_queue_s + context.num_uncached_patches * costs.encoder_s_per_patch / num_shares + costs.hop_s
    if language_queue_s + own_s + stalled_s <= encoder_s:
        return EncodeChoice(False, _why_not_encoders(context, encoder_queue_s, costs))
    return EncodeChoice(True, _why_encoders(stalled_s, language_queue_s))


def _why_not_encoders(context: EncodeContext, encoder_queue_s: float, costs: EncodeCosts) -> EncodeReason:
    if encoder_queue_s > costs.hop_s:
        return EncodeReason.ENCODER_QUEUE
    return EncodeReason.FEW_PATCHES if context.num_running else EncodeReason.IDLE_LANGUAGE_ACTOR


def _why_encoders(stalled_s: float, language_queue_s: float) -> EncodeReason:
    if max(stalled_s, language_queue_s) == 0:
        return EncodeReason.FASTER_ENCODERS
    return EncodeReason.RUNNING_ANSWERS if stalled_s >= language_queue_s else EncodeReason.LANGUAGE_QUEUE
