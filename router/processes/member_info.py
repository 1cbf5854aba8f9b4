"""A member on its way to another process."""

from __future__ import annotations

from router.control.membership import Member
from triptych.v1 import admin_pb2


def info_of(member: Member) -> admin_pb2.ActorInfo:
    """From which `Member.from_info` makes an equal one. Its cache is told in pages of one token."""
    return admin_pb2.ActorInfo(
        actor_id=member.actor_id,
        stage=member.stage.to_proto(),
        endpoint=member.endpoint,
        host_id=member.host_id,
        lanes=member.lanes,
        model_fingerprint=member.model_fingerprint,
        dtype=member.dtype,
        multimodal_disaggregated=member.multimodal_disaggregated,
        device_id=member.device_id,
        language=admin_pb2.LanguageCounters(total_pages=member.num_kv_tokens, page_size=1),
        state=member.state,
    )
