"""Whether every stage that a request needs has an actor."""

from __future__ import annotations

from router.control.membership import Membership, StageName
from triptych.config import Mode


def missing_stages(mode: Mode, membership: Membership, *, encoders_may_go: bool = False) -> str:
    """Names the stages without a member; empty when requests with pictures can be answered.

    encoders_may_go: an idle system has none (scaling.encoder.min_actors=0), and the next picture makes one start.
    """
    missing = []
    if mode is Mode.DISAGGREGATED and not encoders_may_go and not membership.members(StageName.ENCODER):
        missing.append("encoder")
    if not membership.members(StageName.PREFILL_DECODE):
        missing += [stage for stage in (StageName.PREFILL, StageName.DECODE) if not membership.members(stage)]
    return f"no actor of stage {', '.join(missing)}" if missing else ""
