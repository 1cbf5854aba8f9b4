"""DeploymentConfig: the one schema behind the YAML file, the environment and the command line.

Precedence: command line over environment (`TRIPTYCH_STAGES__ENCODER__REPLICAS=2`, two underscores a level) over file
over the defaults below. Unknown keys are errors. Helm values and `triptych serve --config` share these names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from triptych.config.access import FetchSection, SecuritySection
from triptych.config.control import ControlSection
from triptych.config.encoder import EncoderSection
from triptych.config.error import configuration_error, origins_of
from triptych.config.language import LanguageSection, PrefillDecodeSection
from triptych.config.limits import DefaultsSection, LimitsSection
from triptych.config.model import ModelSection
from triptych.config.router import RouterSection
from triptych.config.scaling import ScalingSection
from triptych.config.section import Section
from triptych.config.sources import merge, read_environment, read_file
from triptych.config.telemetry import TelemetrySection
from triptych.config.transport import TransportSection


class Mode(StrEnum):
    """`disaggregated`: encoder actors and LLM actors without a tower. `colocated`: LLM actors that carry the tower.

    `auto`: LLM actors that prefill carry the tower beside encoder actors, and each request is encoded where that costs
    less.
    """

    DISAGGREGATED = "disaggregated"
    COLOCATED = "colocated"
    AUTO = "auto"


class StagesSection(Section):
    encoder: EncoderSection = EncoderSection()
    prefill: LanguageSection = LanguageSection()
    decode: LanguageSection = LanguageSection()
    prefill_decode: PrefillDecodeSection = PrefillDecodeSection()


class DeploymentConfig(Section):
    """Everything an operator can set. See `from_sources`."""

    mode: Mode = Field(
        Mode.DISAGGREGATED,
        description="disaggregated: encoders apart. colocated: LLM actors carry the vision tower. "
        "auto: both, chosen for each request.",
    )
    model: ModelSection = ModelSection()
    stages: StagesSection = StagesSection()
    transport: TransportSection = TransportSection()
    limits: LimitsSection = LimitsSection()
    defaults: DefaultsSection = DefaultsSection()
    router: RouterSection = RouterSection()
    fetch: FetchSection = FetchSection()
    security: SecuritySection = SecuritySection()
    control: ControlSection = ControlSection()
    telemetry: TelemetrySection = TelemetrySection()
    scaling: ScalingSection = ScalingSection()

    @model_validator(mode="after")
    def _stages_fit_mode(self) -> DeploymentConfig:
        stages = self.stages
        if self.mode is Mode.COLOCATED:
            if stages.prefill_decode.replicas < 1:
                raise ValueError("mode colocated needs stages.prefill_decode.replicas >= 1")
            return self
        if self.mode is Mode.DISAGGREGATED and stages.encoder.replicas < 1:
            raise ValueError("mode disaggregated needs stages.encoder.replicas >= 1")
        is_split = stages.prefill.replicas >= 1 and stages.decode.replicas >= 1
        if not is_split and stages.prefill_decode.replicas < 1:
            raise ValueError("needs prefill and decode replicas >= 1, or stages.prefill_decode.replicas >= 1")
        if stages.prefill.page_size != stages.decode.page_size:
            raise ValueError(
                f"stages.prefill.page_size={stages.prefill.page_size} and "
                f"stages.decode.page_size={stages.decode.page_size} differ"
            )
        return self

    @classmethod
    def from_sources(
        cls,
        file: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> DeploymentConfig:
        """Merge file, environment and `overrides` (nested, as from the command line).

        Raises ConfigurationError that names each bad key and the layer it came from.

        In mode colocated the replicas of the stages that do not exist there become 0, and prefill_decode gets one
        unless it was set: `mode: colocated` alone is a complete configuration.
        """
        values: dict[str, Any] = {}
        origins: dict[tuple[str, ...], str] = {}
        for name, layer in (
            (f"file {file}", read_file(file)),
            *read_environment(os.environ if environment is None else environment),
            ("command line", overrides or {}),
        ):
            values = merge(values, layer)
            for path, origin in origins_of(layer, name).items():
                origins.pop(path, None)  # The last layer comes last.
                origins[path] = origin
        if values.get("mode") == Mode.COLOCATED:
            values = merge(_COLOCATED_DEFAULTS, values)
            values = merge(values, _COLOCATED_FIXED)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise configuration_error(error, cls, origins) from None


_COLOCATED_DEFAULTS: dict[str, Any] = {"stages": {"prefill_decode": {"replicas": 1}}}
_COLOCATED_FIXED: dict[str, Any] = {
    "stages": {"encoder": {"replicas": 0}, "prefill": {"replicas": 0}, "decode": {"replicas": 0}}
}
