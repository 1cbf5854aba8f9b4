"""The part of the scaling section that says when actors move between stages."""

from __future__ import annotations

from pydantic import Field

from triptych.config.section import Section


class RolesSection(Section):
    """Bounds of the stages are those of scaling: min_actors and max_actors where set, else 1 and any number."""

    policy: str = Field(
        "fixed",
        description="Role policy by name: fixed, or balance: actors move to where the requests' mix needs them.",
    )
    horizon_s: float = Field(
        30.0, gt=0, description="For how long the mix is believed to stay as it is: within that a move has to pay."
    )
    hysteresis: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Least part of the work within the horizon that a move must win, its cost taken off.",
    )
    settle_s: float = Field(3.0, ge=0, description="How long a move must have paid before it is made.")
    cooldown_s: float = Field(10.0, ge=0, description="Between two moves.")
    role_s: float = Field(
        0.05, ge=0, description="What a move between language stages takes an actor away for, until that was measured."
    )
    turn_s: float = Field(
        2.0,
        ge=0,
        description="The same between the encoder stage and a language stage (control.keep_both_halves), what runs "
        "there included.",
    )
