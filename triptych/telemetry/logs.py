"""Log lines of a process: text for people, JSON for machines, both with the id of the request that they are about."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from triptych.config.telemetry import LogFormat, TelemetrySection
from triptych.telemetry.request_scope import Attribute, request_id_here

# Under these names `extra` brings a line its figures, and its request where no task of the request writes it.
FIGURES = "figures"
REQUEST_ID = "request_id"


def figures(**values: Attribute) -> dict[str, Any]:
    """`extra` of a log call: fields of their own in JSON, name=value in text."""
    return {FIGURES: values}


def set_up_logging(section: TelemetrySection, level: int | None = None, stream: TextIO | None = None) -> None:
    """Sends this process's log to `stream` (stderr) in the configured form, instead of where it went before.

    `level` overrules the configured one.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(_add_request_id)
    handler.setFormatter(JsonFormatter() if section.log_format is LogFormat.JSON else TextFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.getLevelNamesMapping()[section.log_level.upper()] if level is None else level)
    # Of prompts that are too long the router says so itself, with the limit that counts.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)


class TextFormatter(logging.Formatter):
    """`21:04:05 INFO router.api.answering: message name=value [request abc]`; control characters are escaped."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        values = "".join(f" {name}={_short(value)}" for name, value in _figures(record).items())
        request_id = _request_id(record)
        return _printable(line + values + (f" [request {request_id}]" if request_id else ""))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id, the figures, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = _request_id(record)
        if request_id:
            line[REQUEST_ID] = request_id
        line |= {name: value for name, value in _figures(record).items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _add_request_id(record: logging.LogRecord) -> bool:
    """While the task that writes the line is still the current one."""
    if not hasattr(record, REQUEST_ID):
        setattr(record, REQUEST_ID, request_id_here())
    return True


def _request_id(record: logging.LogRecord) -> str:
    return str(getattr(record, REQUEST_ID, ""))


def _figures(record: logging.LogRecord) -> Mapping[str, Attribute]:
    values: Mapping[str, Attribute] = getattr(record, FIGURES, {})
    return values


def _short(value: Attribute) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _printable(line: str) -> str:
    """A line stays one line, whatever a client wrote into what is quoted."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
