"""From flags to the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.config import DeploymentConfig, Mode
from triptych.errors import ConfigurationError


def deployment_config(
    file: Path | None = None,
    model: str | None = None,
    mode: str | None = None,
    encoders: int | None = None,
    prefills: int | None = None,
    decodes: int | None = None,
    prefill_decodes: int | None = None,
    *,
    address: str | None = None,
    host: str | None = None,
    port: int | None = None,
    http_port: int | None = None,
    router_processes: int | None = None,
) -> DeploymentConfig:
    """File and environment with the flags over them; raises ConfigurationError naming the key or the flag."""
    if mode == Mode.COLOCATED:
        _refuse_in_colocated({"--encoders": encoders, "--prefills": prefills, "--decodes": decodes})
    if prefill_decodes and prefills is None and decodes is None:
        # Actors that do both take the place of those that do one.
        prefills = decodes = 0
    flags: dict[str, Any] = {
        "mode": mode,
        "model": {"path": model},
        "stages": {
            "encoder": {"replicas": encoders},
            "prefill": {"replicas": prefills},
            "decode": {"replicas": decodes},
            "prefill_decode": {"replicas": prefill_decodes},
        },
        "control": {"address": address},
        "router": {"host": host, "port": port, "http_port": http_port, "processes": router_processes},
    }
    return DeploymentConfig.from_sources(file, _given(flags))


def _refuse_in_colocated(flags: dict[str, int | None]) -> None:
    for flag, count in flags.items():
        if count:
            raise ConfigurationError(
                f"{flag} {count}: in mode colocated every actor encodes, prefills and decodes; use --prefill-decodes",
                field="mode",
            )


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Without what was not said."""
    nested = {key: _given(value) if isinstance(value, dict) else value for key, value in flags.items()}
    return {key: value for key, value in nested.items() if value is not None and value != {}}
