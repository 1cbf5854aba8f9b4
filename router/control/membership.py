"""Who can work right now: the view of ready actors that the controller writes and the dispatcher reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from triptych.v1 import admin_pb2, common_pb2


class StageName(StrEnum):
    """The four pools, named as in the configuration (`stages.<name>`)."""

    ENCODER = "encoder"
    PREFILL = "prefill"
    DECODE = "decode"
    PREFILL_DECODE = "prefill_decode"

    def to_proto(self) -> common_pb2.Stage:
        """The same stage as the proto enum."""
        return _PROTO_STAGES[self]

    @classmethod
    def from_proto(cls, stage: int) -> StageName:
        """The stage of a proto enum value; raises ValueError for STAGE_UNSPECIFIED and unknown numbers."""
        for name, value in _PROTO_STAGES.items():
            if value == stage:
                return name
        raise ValueError(f"stage is {stage}, expected one of {', '.join(common_pb2.Stage.keys()[1:])}")


_PROTO_STAGES = {
    StageName.ENCODER: common_pb2.STAGE_ENCODER,
    StageName.PREFILL: common_pb2.STAGE_PREFILL,
    StageName.DECODE: common_pb2.STAGE_DECODE,
    StageName.PREFILL_DECODE: common_pb2.STAGE_PREFILL_DECODE,
}


@dataclass(frozen=True)
class Member:
    """One running actor, as it described itself at its start. `actor_id` is the incarnation id: new at every start."""

    actor_id: str
    stage: StageName
    endpoint: str
    host_id: str
    lanes: tuple[str, ...]
    model_fingerprint: str
    dtype: common_pb2.DataType
    multimodal_disaggregated: bool
    device_id: str = ""  # UUID of its GPU, empty without one
    num_kv_tokens: int = 0  # that its KV cache has room for; LLM actors
    state: admin_pb2.ActorState = admin_pb2.ACTOR_STATE_READY

    @property
    def has_tower(self) -> bool:
        """An LLM actor that encodes pictures by itself."""
        return self.stage is not StageName.ENCODER and not self.multimodal_disaggregated

    @classmethod
    def from_info(cls, info: admin_pb2.ActorInfo) -> Member:
        """The member that an actor's own description names."""
        return cls(
            actor_id=info.actor_id,
            stage=StageName.from_proto(info.stage),
            endpoint=info.endpoint,
            host_id=info.host_id,
            lanes=tuple(info.lanes),
            model_fingerprint=info.model_fingerprint,
            dtype=info.dtype,
            multimodal_disaggregated=info.multimodal_disaggregated,
            device_id=info.device_id,
            num_kv_tokens=info.language.total_pages * info.language.page_size,
            state=info.state or admin_pb2.ACTOR_STATE_READY,
        )


LostCallback = Callable[[str], None]
ChangeCallback = Callable[[], None]


class Membership:
    """The members of every stage. Lives on one event loop and is not thread-safe.

    The controller calls `set` whenever its view changes. An actor reported lost leaves the view at once and stays out,
    even when a later `set` lists it, until the controller drops it or says `restore`. A restarted actor has a new id.
    """

    def __init__(self, on_lost: LostCallback | None = None) -> None:
        """`on_lost(actor_id)` tells the controller that somebody could not reach that actor."""
        self._members: dict[str, Member] = {}
        self._lost: dict[str, Member] = {}
        self._on_lost = on_lost
        self._on_change: list[ChangeCallback] = []
        self._changed = asyncio.Event()

    def members(self, stage: StageName) -> list[Member]:
        """Members of `stage` that take new work (state READY), in the order the controller gave them."""
        return [member for member in self.all_members() if member.stage is stage and _is_ready(member)]

    def all_members(self) -> list[Member]:
        """Members of every stage and state, lost ones left out."""
        return list(self._members.values())

    def set(self, members: Iterable[Member]) -> None:
        """Replaces the whole view."""
        listed = {member.actor_id: member for member in members}
        # Only ids that the controller still lists need remembering: an id that it dropped never comes back.
        self._lost = {actor_id: member for actor_id, member in listed.items() if actor_id in self._lost}
        current = {actor_id: member for actor_id, member in listed.items() if actor_id not in self._lost}
        if current == self._members:
            return
        self._members = current
        self._note_change()

    def report_lost(self, actor_id: str) -> bool:
        """Takes an actor that did not answer out of the view at once, tells the controller; False for unknown ids."""
        member = self._members.pop(actor_id, None)
        if member is None:
            return False
        self._lost[actor_id] = member
        self._note_change()
        if self._on_lost is not None:
            self._on_lost(actor_id)
        return True

    def restore(self, actor_id: str) -> None:
        """Puts an actor that was reported lost back into the view: the controller asked it, and it answered."""
        member = self._lost.pop(actor_id, None)
        if member is None:
            return
        self._members[actor_id] = member
        self._note_change()

    def on_lost(self, callback: LostCallback) -> None:
        """Sets the callback of `report_lost`, for a controller that is made after the membership."""
        self._on_lost = callback

    def on_change(self, callback: ChangeCallback) -> None:
        """Calls `callback()` after every change of the view, on the event loop."""
        self._on_change.append(callback)

    async def wait_for_change(self) -> None:
        """Returns after the next change of the view."""
        await self._changed.wait()

    def _note_change(self) -> None:
        # A fresh event for the next change: everybody who waits on the old one wakes once.
        self._changed.set()
        self._changed = asyncio.Event()
        for callback in self._on_change:
            callback()


def _is_ready(member: Member) -> bool:
    return member.state == admin_pb2.ACTOR_STATE_READY
