"""Whether every stage that a request needs has an actor."""

from __future__ import annotations

from router.control.membership import Membership, StageName
from triptych.config import Mode


def missing_stages(mode: Mode, membership: Membership) -> str:
    """Names the stages without a member; empty when requests with pictures can be answered."""
    missing = []
    if mode is Mode.DISAGGREGATED and not membership.members(StageName.ENCODER):
        missing.append("encoder")
    if not membership.members(StageName.PREFILL_DECODE):
        missing += [stage for stage in (StageName.PREFILL, StageName.DECODE) if not membership.members(stage)]
    return f"no actor of stage {', '.join(missing)}" if missing else ""
