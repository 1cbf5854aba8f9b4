"""The controller: its cluster, and how long it waits for actors."""

from __future__ import annotations

from pydantic import Field

from triptych.config.section import Section


class ControlSection(Section):
    address: str = Field(
        "", description="Ray cluster: empty starts a local one, 'auto' joins the one of this machine, else host:port."
    )
    namespace: str = Field("triptych", description="Ray namespace of the actors; one deployment has it to itself.")
    detached: bool = Field(
        False,
        description="The controller is an actor of its own: it and the stages live on when the router ends, and a "
        "router started later finds them. `triptych down` ends them.",
    )
    reconcile_interval_s: float = Field(0.5, gt=0, description="How often wanted and running are compared.")
    health_timeout_s: float = Field(
        15.0,
        gt=0,
        description="An actor that does not answer that long is replaced; one whose process died, at once. Where it is "
        "shorter than a busy host keeps an actor from its core, it ends actors that only work.",
    )
    placement_timeout_s: float = Field(
        600.0,
        gt=0,
        description="An actor that the cluster has no place for is given up then, with the reason, and tried again "
        "later. Meanwhile it is what Ray's autoscaler adds nodes for.",
    )
    start_timeout_s: float = Field(
        300.0, gt=0, description="An actor that has a place and is not ready by then is given up."
    )
    drain_timeout_s: float = Field(60.0, gt=0, description="An actor taken away may finish its work that long.")
    role_grace_s: float = Field(
        1.0,
        ge=0,
        description="How long an actor whose role changed still takes requests of the role before, which routers sent "
        "when they had not heard of it.",
    )
    keep_both_halves: bool = Field(
        False,
        description="Actors have vision tower and language model both, the weights of the half that rests in pinned "
        "host memory: so they move between the encoder stage and the language stages as well. Mode disaggregated.",
    )
