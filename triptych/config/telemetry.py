"""What the system tells about itself: log lines, traces, metrics."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, field_validator

from triptych.config.section import Section


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class TelemetrySection(Section):
    """docs/observability.md has the names of metrics, spans and fields."""

    log_format: LogFormat = Field(LogFormat.TEXT, description="text, or json: one object a line.")
    log_level: LogLevel = Field(
        LogLevel.WARNING, description="debug | info | warning | error; info has a line for every request and stage."
    )
    otlp_endpoint: str = Field(
        "",
        description="Where traces go, as http://collector:4317 (OTLP over gRPC; https: with TLS); empty: no traces.",
    )
    trace_sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Part of the requests that are traced; a client's traceparent overrules it."
    )
    scrape_timeout_s: float = Field(
        1.0, gt=0, description="An actor that has not answered a scrape of /metrics by then is left out of it."
    )
    scrape_cache_s: float = Field(
        1.0, ge=0, description="Scrapes of /metrics within that time get the same figures of the actors."
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("expected http://host:port or https://host:port")
        return value
