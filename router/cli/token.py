"""`triptych token new`."""

from __future__ import annotations

import math
import os
from pathlib import Path

from triptych.errors import ConfigurationError, InvalidRequest
from triptych.rpc.token_file import NAME, TokenRecord, new_token, read_tokens

_FILE_MODE = 0o600


def run_token_new(name: str, *, is_admin: bool, max_in_flight: int, requests_per_s: float, file: Path | None) -> int:
    """Prints a token, which is kept nowhere, and its line; the line goes to the end of `file` where one is named."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(f"the name is {name!r}, expected letters, digits and any of _ . -", field="name")
    if not math.isfinite(requests_per_s):
        raise InvalidRequest(f"requests_per_s is {requests_per_s}, expected a number", field="requests_per_s")
    token, digest = new_token()
    record = TokenRecord(name, digest, is_admin, max_in_flight, requests_per_s)
    if file is not None:
        _append(file, record)
    print(f"token, shown this once: {token}")
    print(f"{'added to ' + str(file) if file else 'line for security.tokens_file'}: {record.line()}")
    return 0


def _append(file: Path, record: TokenRecord) -> None:
    """A new file is for its owner alone. Raises ConfigurationError for one that holds something else, or the name."""
    known = read_tokens(file) if file.exists() else []
    if any(other.name == record.name for other in known):
        raise ConfigurationError(f"{file} has a token of the name {record.name!r} already", field="name")
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _FILE_MODE), "a") as output:
            needs_newline = output.tell() > 0 and not file.read_text(encoding="utf-8").endswith("\n")
            output.write(f"{chr(10) if needs_newline else ''}{record.line()}\n")
    except OSError as error:
        raise ConfigurationError(f"can't write {file}: {error.strerror}", field="file") from None
