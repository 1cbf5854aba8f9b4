"""The controller: its cluster, and how long it waits for actors."""

from __future__ import annotations

from pydantic import Field

from triptych.config.section import Section


class ControlSection(Section):
    address: str = Field(
        "", description="Ray cluster: empty starts a local one, 'auto' joins the one of this machine, else host:port."
    )
    namespace: str = Field("triptych", description="Ray namespace of the actors.")
    reconcile_interval_s: float = Field(0.5, gt=0, description="How often wanted and running are compared.")
    health_timeout_s: float = Field(5.0, gt=0, description="An actor that does not answer that long is replaced.")
    start_timeout_s: float = Field(300.0, gt=0, description="An actor that is not ready by then is given up.")
    drain_timeout_s: float = Field(60.0, gt=0, description="An actor taken away may finish its work that long.")
    role_grace_s: float = Field(
        1.0,
        ge=0,
        description="How long an actor whose role changed still takes requests of the role before, which routers sent "
        "when they had not heard of it.",
    )
