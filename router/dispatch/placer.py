"""From the members there are to the actors that serve one request, waiting for a stage that has none."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from router.control.membership import Member, Membership, StageName
from router.dispatch.cache_map import PREFIX_BLOCK_TOKENS, CacheMap
from router.dispatch.circuit import CircuitBreaker
from router.dispatch.dispatch_counts import DispatchCounts
from router.dispatch.encode_costs import EncodeCostMeter, EncodeTail
from router.dispatch.encode_place import EncodeChoice, EncodeContext, EncodeReason, choose_encode_place
from router.dispatch.loads import NO_LOAD, Load, LoadLedger
from router.dispatch.placement import Candidate, Chance, MediaWork, Placement, placement_policy
from router.dispatch.prepared_request import PreparedRequest
from router.dispatch.walk_record import WalkRecord
from triptych.config import DeploymentConfig, Mode
from triptych.errors import Overloaded, TriptychError, Unavailable
from triptych.rpc.deadline import Deadline

# Room of a KV cache whose actor did not say.
_UNKNOWN_KV_TOKENS = 65_536


@dataclass(frozen=True)
class PlacerSettings:
    """embedding_token_bytes: of one token's embedding, to know how many pictures an encoder's cache holds."""

    config: DeploymentConfig
    embedding_token_bytes: int

    @property
    def is_auto(self) -> bool:
        return self.config.mode is Mode.AUTO

    @property
    def needs_encoder(self) -> bool:
        return self.config.mode is Mode.DISAGGREGATED

    @property
    def encoder_cache_bytes(self) -> int:
        return self.config.stages.encoder.cache_bytes


class Placer:
    """Applies the placement policy to the members of the moment, and remembers what it gave to whom."""

    def __init__(
        self, settings: PlacerSettings, membership: Membership, loads: LoadLedger, random: Random | None = None
    ) -> None:
        self._settings = settings
        self._membership = membership
        self._loads = loads
        self._policy = placement_policy(settings.config.router.placement)
        self._random = random or Random()
        self._turn = 0
        self._num_hedges = 0
        self._waiting_load = NO_LOAD
        self._embeddings = CacheMap()
        self._prefixes = CacheMap()
        self._encode_costs = EncodeCostMeter()
        self._encode_tail = EncodeTail()
        self._circuits = CircuitBreaker(settings.config.router.circuit_failures, settings.config.router.circuit_pause_s)
        membership.on_change(self._forget_the_gone)

    async def place(self, request: PreparedRequest, deadline: Deadline, avoid: Collection[str] = ()) -> Placement:
        """Actors for `request`, those in `avoid` only where there is no other.

        Waits until every stage that it needs has a member; raises Unavailable naming the stage when the deadline
        passes first.
        """
        if self._missing_stage(request) is not None:
            await self._wait_for_stages(request, deadline)
        placement = self._choose(request, {*avoid, *self._circuits.open_actors()})
        self._circuits.note_chosen(member.actor_id for member in placement.members)
        return placement

    async def _wait_for_stages(self, request: PreparedRequest, deadline: Deadline) -> None:
        work = Load(sum(item.num_patches for item in request.media), len(request.token_ids))
        self._waiting_load = self._waiting_load + work
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
        finally:
            self._waiting_load = self._waiting_load - work

    @property
    def waiting_load(self) -> Load:
        """Patches and prompt tokens of requests that wait for a stage without actors."""
        return self._waiting_load

    def note_walk(self, record: WalkRecord, request: PreparedRequest) -> None:
        """Learns from a walk that went well what encoding costs, and that its actors are in health."""
        num_patches = sum(item.num_patches for item in request.media)
        self._encode_costs.note(record, num_patches)
        self._encode_tail.note(record, num_patches)
        self._circuits.note_success(member.actor_id for member in record.placement.members)

    def note_failure(self, actor_ids: Collection[str], error: TriptychError) -> None:
        """These actors failed a walk. One that is full is in health."""
        if not isinstance(error, Overloaded):
            self._circuits.note_failure(actor_ids)

    def note_hedge(self) -> None:
        """A second walk was begun because of `hedge_delay_s`."""
        self._num_hedges += 1

    def counts(self, num_waiting: int) -> DispatchCounts:
        """With what waits for room to be placed."""
        circuits = self._circuits
        return DispatchCounts(num_waiting, len(circuits.open_actors()), circuits.num_openings, self._num_hedges)

    def has_others(self, actor_ids: Collection[str]) -> bool:
        """Whether each stage of these actors has a ready one beside them."""
        stages = {member.stage for member in self._membership.all_members() if member.actor_id in actor_ids}
        return bool(stages) and all(
            any(member.actor_id not in actor_ids for member in self._membership.members(stage)) for stage in stages
        )

    def hedge_delay_s(self, request: PreparedRequest, placement: Placement) -> float | None:
        """After how long without a token a second walk over other encoders pays; None where it does not."""
        if not self._settings.config.router.hedge_encode or not placement.encoders:
            return None
        if not self.has_others({member.actor_id for member in placement.encoders}):
            return None
        return self._encode_tail.p99_s(sum(item.num_patches for item in request.media))

    def _choose(self, request: PreparedRequest, avoid: Collection[str]) -> Placement:
        chance = Chance(self._turn, self._random)
        self._turn += 1
        first = self._choose_prefill(request, avoid, chance)
        choice = self._choose_encode_place(request, first)
        encoders = self._choose_encoders(request, avoid, chance) if choice.uses_encoders else ()
        if first.stage is StageName.PREFILL_DECODE:
            return Placement(encoders, None, first, choice.reason)
        decodes = {member.actor_id: member for member in self._members(StageName.DECODE, avoid)}
        decode = self._policy.decode([self._candidate(member) for member in decodes.values()], chance)
        return Placement(encoders, first, decodes[decode.actor_id], choice.reason)

    def _choose_prefill(self, request: PreparedRequest, avoid: Collection[str], chance: Chance) -> Member:
        split = self._members(StageName.PREFILL, avoid) if self._membership.members(StageName.DECODE) else []
        members = {member.actor_id: member for member in [*self._members(StageName.PREFILL_DECODE, avoid), *split]}
        candidates = [
            self._candidate(
                member,
                num_cached_tokens=PREFIX_BLOCK_TOKENS * self._prefixes.num_leading(actor_id, request.prefix_keys),
            )
            for actor_id, member in members.items()
        ]
        chosen = members[self._policy.prefill(len(request.token_ids), candidates, chance).actor_id]
        room = chosen.num_kv_tokens or _UNKNOWN_KV_TOKENS
        for key in request.prefix_keys:
            self._prefixes.remember(chosen.actor_id, key, PREFIX_BLOCK_TOKENS, room)
        return chosen

    def _choose_encode_place(self, request: PreparedRequest, first: Member) -> EncodeChoice:
        """Only mode auto has a choice."""
        if not request.media:
            return EncodeChoice(False, EncodeReason.NO_MEDIA)
        if not first.has_tower:
            return EncodeChoice(True, EncodeReason.NO_TOWER)
        encoders = self._membership.members(StageName.ENCODER) if self._settings.is_auto else []
        load = self._loads.of(first.actor_id)
        context = EncodeContext(
            num_items=len(request.media),
            num_patches=sum(item.num_patches for item in request.media),
            num_uncached_patches=sum(
                item.num_patches
                for item in request.media
                if not any(self._embeddings.holds(encoder.actor_id, item.content_key) for encoder in encoders)
            ),
            num_encoders=len(encoders),
            encoder_backlog_patches=min((self._loads.of(e.actor_id).num_patches for e in encoders), default=0),
            has_tower=True,
            language_backlog_patches=load.num_patches,
            num_running=load.num_requests,
            stall_share=self._settings.config.router.stall_share,
        )
        return choose_encode_place(context, self._encode_costs.costs)

    def _choose_encoders(self, request: PreparedRequest, avoid: Collection[str], chance: Chance) -> tuple[Member, ...]:
        items = [MediaWork(item.content_key, item.num_patches) for item in request.media]
        members = {member.actor_id: member for member in self._members(StageName.ENCODER, avoid)}
        candidates = [
            self._candidate(
                member,
                cached_content=frozenset(
                    item.content_key for item in items if self._embeddings.holds(actor_id, item.content_key)
                ),
            )
            for actor_id, member in members.items()
        ]
        chosen = self._policy.encoders(items, candidates, chance)
        for item, candidate in zip(request.media, chosen, strict=True):
            cost = item.num_tokens * self._settings.embedding_token_bytes
            self._embeddings.remember(candidate.actor_id, item.content_key, cost, self._settings.encoder_cache_bytes)
        return tuple(members[candidate.actor_id] for candidate in chosen)

    def _candidate(
        self, member: Member, *, cached_content: frozenset[str] = frozenset(), num_cached_tokens: int = 0
    ) -> Candidate:
        return Candidate(
            actor_id=member.actor_id,
            load=self._loads.of(member.actor_id),
            cached_content=cached_content,
            num_cached_tokens=num_cached_tokens,
            num_kv_tokens=member.num_kv_tokens,
        )

    def _members(self, stage: StageName, avoid: Collection[str]) -> Sequence[Member]:
        members = self._membership.members(stage)
        return [member for member in members if member.actor_id not in avoid] or members

    def _missing_stage(self, request: PreparedRequest) -> StageName | None:
        """A stage without which the request can't be served now."""
        members = self._membership.members
        if request.media and self._settings.needs_encoder and not members(StageName.ENCODER):
            return StageName.ENCODER
        if members(StageName.PREFILL_DECODE):
            return None
        has_prefill, has_decode = bool(members(StageName.PREFILL)), bool(members(StageName.DECODE))
        if has_prefill and has_decode:
            return None
        if self._settings.config.mode is Mode.COLOCATED:
            return StageName.PREFILL_DECODE
        return StageName.DECODE if has_prefill else StageName.PREFILL

    def _forget_the_gone(self) -> None:
        present = {member.actor_id for member in self._membership.all_members()}
        self._embeddings.retain(present)
        self._prefixes.retain(present)
        self._circuits.retain(present)
