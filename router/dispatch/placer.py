"""From the members there are to the actors that serve one request, waiting for a stage that has none."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from router.control.membership import Member, Membership, StageName
from router.dispatch.loads import LoadLedger
from router.dispatch.placement import MediaWork, PlacementPolicy
from router.dispatch.prepared_request import PreparedRequest
from triptych.config import Mode
from triptych.errors import Unavailable
from triptych.rpc.deadline import Deadline


@dataclass(frozen=True)
class Placement:
    """`encoders`: one for each media item, none when the LLM actor encodes. `prefill`: none when `decode` does both."""

    encoders: tuple[Member, ...]
    prefill: Member | None
    decode: Member

    @property
    def first_language_actor(self) -> Member:
        """Who takes the embeddings."""
        return self.prefill or self.decode


class Placer:
    """Applies the placement policy to the members of the moment."""

    def __init__(self, mode: Mode, membership: Membership, policy: PlacementPolicy, loads: LoadLedger) -> None:
        self._mode = mode
        self._membership = membership
        self._policy = policy
        self._loads = loads

    async def place(self, request: PreparedRequest, deadline: Deadline, avoid: Collection[str] = ()) -> Placement:
        """Actors for `request`, those in `avoid` only where there is no other.

        Waits until every stage that it needs has a member; raises Unavailable naming the stage when the deadline
        passes first.
        """
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                while (missing := self._missing_stage(request)) is not None:
                    await self._membership.wait_for_change()
        except TimeoutError:
            raise Unavailable(
                f"stage {missing} has no ready actor and got none before the request's deadline; "
                f"expected at least one, see stages.{missing}.replicas and AdminService.Scale",
                field=f"stages.{missing}.replicas",
            ) from None
        return self._choose(request, avoid)

    def _choose(self, request: PreparedRequest, avoid: Collection[str]) -> Placement:
        split = self._candidates(StageName.PREFILL, avoid) if self._membership.members(StageName.DECODE) else []
        first = self._policy.choose_prefill([*self._candidates(StageName.PREFILL_DECODE, avoid), *split], self._loads)
        encoders = self._choose_encoders(request, avoid) if first.multimodal_disaggregated else ()
        if first.stage is StageName.PREFILL_DECODE:
            return Placement(encoders, prefill=None, decode=first)
        decode = self._policy.choose_decode(self._candidates(StageName.DECODE, avoid), self._loads)
        return Placement(encoders, prefill=first, decode=decode)

    def _choose_encoders(self, request: PreparedRequest, avoid: Collection[str]) -> tuple[Member, ...]:
        if not request.media:
            return ()
        items = [MediaWork(item.content_key, item.num_patches) for item in request.media]
        candidates = self._candidates(StageName.ENCODER, avoid)
        return tuple(self._policy.choose_encoders(items, candidates, self._loads))

    def _candidates(self, stage: StageName, avoid: Collection[str]) -> Sequence[Member]:
        members = self._membership.members(stage)
        return [member for member in members if member.actor_id not in avoid] or members

    def _missing_stage(self, request: PreparedRequest) -> StageName | None:
        """A stage without which the request can't be served now."""
        has = {stage: bool(self._membership.members(stage)) for stage in StageName}
        if request.media and self._mode is Mode.DISAGGREGATED and not has[StageName.ENCODER]:
            return StageName.ENCODER
        if has[StageName.PREFILL_DECODE] or (has[StageName.PREFILL] and has[StageName.DECODE]):
            return None
        if self._mode is Mode.COLOCATED:
            return StageName.PREFILL_DECODE
        if has[StageName.DECODE]:
            return StageName.PREFILL
        return StageName.DECODE if has[StageName.PREFILL] else StageName.PREFILL
