"""What TensorRT says, in the log of this process, and the last error for a message."""

import logging
from typing import Any

from encoder_service.engines.tensorrt.library import TensorRTLibrary

_log = logging.getLogger(__name__)


class LastError:
    """Holds what TensorRT complained about last, for the error that its caller raises."""

    def __init__(self) -> None:
        self.text = "no reason given"


def library_logger(library: TensorRTLibrary, last_error: LastError) -> Any:
    """A logger as TensorRT wants one; it must live as long as what was made with it."""
    severity = library.module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
    }

    class _Logger(library.module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, level: Any, text: str) -> None:
            if levels.get(level) == logging.ERROR:
                last_error.text = text
            # Verbose output is thousands of lines.
            if level in levels:
                _log.log(levels[level], "%s: %s", library.name, text)

    return _Logger()
