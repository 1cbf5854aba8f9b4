"""From the members of the moment and a prepared request to what admission compares."""

from __future__ import annotations

from router.control.membership import Membership, StageName
from router.dispatch.admission.fair_order import Capacity, CostClass
from router.dispatch.admission.turns import Applicant
from router.dispatch.loads import Load
from router.dispatch.prepared_request import PreparedRequest
from triptych.config import DeploymentConfig
from triptych.v1 import common_pb2


def stage_room(membership: Membership, config: DeploymentConfig) -> Capacity:
    """What the ready actors may have together, in the units of their stages.

    A stage without an actor has no bound here: its requests wait for one, and that is for the placer. Each of several
    router processes has its part.
    """
    num_processes = config.router.processes
    stages, members = config.stages, membership.all_members()
    num_towers = sum(member.stage is StageName.ENCODER or member.has_tower for member in members)
    waiting_tokens = {
        StageName.PREFILL: stages.prefill.max_waiting_tokens,
        StageName.PREFILL_DECODE: stages.prefill_decode.max_waiting_tokens,
    }
    num_kv_tokens = sum(
        member.num_kv_tokens for member in members if member.stage in (StageName.DECODE, StageName.PREFILL_DECODE)
    )
    return Capacity(
        num_patches=num_towers * stages.encoder.max_pending_patches // num_processes,
        num_prompt_tokens=sum(waiting_tokens.get(member.stage, 0) for member in members) // num_processes,
        num_kv_tokens=int(num_kv_tokens * config.router.kv_overcommit / num_processes),
    )


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
