"""From the members of the moment and a prepared request to what admission compares."""

from __future__ import annotations

from collections.abc import Sequence

from router.control.membership import Member, Membership, StageName
from router.dispatch.admission.fair_order import Capacity, CostClass
from router.dispatch.admission.turns import Applicant
from router.dispatch.loads import Load
from router.dispatch.prepared_request import PreparedRequest
from triptych.config import DeploymentConfig
from triptych.config.deployment import StagesSection
from triptych.v1 import common_pb2


def stage_room(membership: Membership, config: DeploymentConfig) -> Capacity:
    """What the ready actors may have together, in the units of their stages.

    A stage without an actor has no bound here: its requests wait for one, and that is for the placer. Each of several
    router processes has its part.
    """
    num_processes = config.router.processes
    stages, members = config.stages, membership.all_members()
    num_towers = sum(member.stage is StageName.ENCODER or member.has_tower for member in members)
    num_kv_tokens = sum(
        member.num_kv_tokens for member in members if member.stage in (StageName.DECODE, StageName.PREFILL_DECODE)
    )
    return Capacity(
        num_patches=num_towers * stages.encoder.max_pending_patches // num_processes,
        num_prompt_tokens=_num_waiting_tokens(members, stages) // num_processes,
        num_kv_tokens=int(num_kv_tokens * config.router.kv_overcommit / num_processes),
    )


def _num_waiting_tokens(members: Sequence[Member], stages: StagesSection) -> int:
    """Prompt tokens that may wait. An actor that decodes counts a prompt from the call on, while another one still
    computes it: so the actors on either side of a transfer of KV pages have to have room."""
    limits = {
        StageName.PREFILL: stages.prefill.max_waiting_tokens,
        StageName.DECODE: stages.decode.max_waiting_tokens,
        StageName.PREFILL_DECODE: stages.prefill_decode.max_waiting_tokens,
    }
    sides = (StageName.PREFILL, StageName.PREFILL_DECODE), (StageName.DECODE, StageName.PREFILL_DECODE)
    rooms = [sum(limits[member.stage] for member in members if member.stage in side) for side in sides]
    return min((room for room in rooms if room), default=0)


def applicant(tenant: str, request: PreparedRequest) -> Applicant:
    """What a request asks of the stages. Its KV tokens are an upper bound: most answers end before max_tokens."""
    kinds = {item.media.kind for item in request.media}
    cost_class = CostClass.PICTURE if kinds else CostClass.TEXT
    if common_pb2.MEDIA_KIND_VIDEO in kinds:
        cost_class = CostClass.VIDEO
    load = Load(
        num_patches=sum(item.num_patches for item in request.media),
        num_prompt_tokens=len(request.token_ids),
        num_kv_tokens=len(request.token_ids) + request.sampling.max_tokens,
        num_requests=1,
    )
    return Applicant(tenant, load, cost_class)
