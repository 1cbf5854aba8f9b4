"""The section of the configuration that says how stages grow and shrink by themselves."""

from __future__ import annotations

from pydantic import Field, model_validator

from triptych.config.roles import RolesSection
from triptych.config.section import Section


class StageScalingSection(Section):
    """Bounds of one stage, and what one of its actors can do as long as nothing was measured."""

    min_actors: int | None = Field(
        None, ge=0, le=1024, description="Fewest actors; unset: the stage's replicas. 0 is for encoders."
    )
    max_actors: int | None = Field(None, ge=0, le=1024, description="Most actors; unset: the stage's replicas.")
    work_per_s: float = Field(
        8_000.0,
        gt=0,
        description="What one actor gets done in a second until that was measured: patches (encoder), prompt tokens "
        "(prefill, prefill_decode).",
    )
    max_streams: int = Field(
        32, ge=1, description="Running answers that one actor serves within scaling.tpot_s (decode, prefill_decode)."
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> StageScalingSection:
        if self.min_actors is not None and self.max_actors is not None and self.min_actors > self.max_actors:
            raise ValueError(f"min_actors={self.min_actors} is above max_actors={self.max_actors}")
        return self


class ScalingSection(Section):
    """Off unless a stage's min_actors and max_actors differ. See docs/scaling.md."""

    policy: str = Field("load_and_slo", description="Scaling policy by name: load_and_slo, queue_only or fixed.")
    interval_s: float = Field(1.0, gt=0, description="How often the policy is asked.")
    ttft_s: float = Field(2.0, gt=0, description="An answer is in time when its first token comes within this ...")
    ttft_per_prompt_token_s: float = Field(0.0, ge=0, description="... and this for each prompt token ...")
    tpot_s: float = Field(0.1, gt=0, description="... and its later tokens come, on average, within this each.")
    attainment: float = Field(0.95, gt=0, le=1, description="Share of answers that should be in time.")
    target_utilization: float = Field(
        0.7, gt=0, le=1, description="How much of what its actors can do a stage should be asked for."
    )
    headroom_deviations: float = Field(
        0.0,
        ge=0,
        description="Room for bursts shorter than a start: so many standard deviations of the work that arrives within "
        "ttft_s, as measured. The larger of this and target_utilization counts.",
    )
    smoothing_s: float = Field(10.0, gt=0, description="Time constant of the average of arriving work.")
    start_s: float = Field(
        20.0,
        gt=0,
        description="How long an actor takes to start, until that was measured. Load that is sooner gone starts none.",
    )
    down_window_s: float = Field(
        300.0, gt=0, description="A stage shrinks to what its highest load of so long needs, never below."
    )
    up_cooldown_s: float = Field(5.0, ge=0, description="Between two times that a stage grows.")
    down_cooldown_s: float = Field(60.0, ge=0, description="Before a stage shrinks, after it grew or shrank.")
    hysteresis: float = Field(0.1, ge=0, description="Room, as a share of the load, that is left when a stage shrinks.")
    correction_limit: float = Field(
        1.5, ge=1, description="While answers come too late a stage's load counts up to that many times."
    )
    zero_after_s: float = Field(
        600.0, gt=0, description="Encoders go, where their min_actors is 0, when so long no picture came."
    )
    encoder: StageScalingSection = StageScalingSection()
    prefill: StageScalingSection = StageScalingSection()
    decode: StageScalingSection = StageScalingSection()
    prefill_decode: StageScalingSection = StageScalingSection()
    roles: RolesSection = RolesSection()

    @model_validator(mode="after")
    def _only_encoders_go_to_zero(self) -> ScalingSection:
        for name in ("prefill", "decode"):
            if getattr(self, name).min_actors == 0:
                raise ValueError(f"{name}.min_actors=0: expected at least 1, only encoders may go")
        return self
