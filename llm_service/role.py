"""Role: what an LLM actor does."""

from __future__ import annotations

from enum import StrEnum

from triptych.errors import InvalidRequest
from triptych.v1 import common_pb2


class Role(StrEnum):
    """The values are the names of the sections under `stages`."""

    PREFILL = "prefill"
    DECODE = "decode"
    PREFILL_DECODE = "prefill_decode"

    @property
    def stage(self) -> common_pb2.Stage:
        """The stage that an actor with this role belongs to."""
        return _STAGES[self]

    @classmethod
    def of_stage(cls, stage: int) -> Role:
        """Raises InvalidRequest for a stage that has no language model."""
        for role in cls:
            if role.stage == stage:
                return role
        raise InvalidRequest(f"stage is {stage}, expected that of a role: {', '.join(cls)}", field="stage")


_STAGES = {
    Role.PREFILL: common_pb2.STAGE_PREFILL,
    Role.DECODE: common_pb2.STAGE_DECODE,
    Role.PREFILL_DECODE: common_pb2.STAGE_PREFILL_DECODE,
}
