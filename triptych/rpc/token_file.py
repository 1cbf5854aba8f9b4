"""The file of tokens: a line for each, `NAME sha256:HEX [admin] [max_in_flight=N] [requests_per_s=X]`, # comments.

A token is 256 random bits, so one round of SHA-256 keeps it: there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from triptych.errors import ConfigurationError

TOKEN_PREFIX = "triptych_"
TOKEN_BYTES = 32
MAX_TOKEN_LENGTH = 512
MAX_FILE_BYTES = 1 << 20
HASH_PREFIX = "sha256:"
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TokenRecord:
    """What the file says about a token; 0 is no limit. `is_admin` opens AdminService."""

    name: str
    digest: bytes
    is_admin: bool = False
    max_in_flight: int = 0
    requests_per_s: float = 0.0

    @property
    def burst(self) -> float:
        """Requests that may come at once after a pause."""
        return max(1.0, self.requests_per_s)

    def line(self) -> str:
        """As it stands in the file."""
        parts = [self.name, HASH_PREFIX + self.digest.hex()]
        if self.is_admin:
            parts.append("admin")
        if self.max_in_flight:
            parts.append(f"max_in_flight={self.max_in_flight}")
        if self.requests_per_s:
            parts.append(f"requests_per_s={self.requests_per_s:g}")
        return " ".join(parts)


def new_token() -> tuple[str, bytes]:
    """A token, which nobody keeps, and its hash."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    return token, hashlib.sha256(token.encode()).digest()


def read_tokens(path: Path) -> list[TokenRecord]:
    """Raises ConfigurationError, with the number of the line, for what is no such file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"can't read {path}: {error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise _wrong(f"{path} has more than {MAX_FILE_BYTES} bytes")
    records: list[TokenRecord] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if words:
            records.append(_record(words, f"line {number} of {path}"))
    names = [record.name for record in records]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _wrong(f"{path} has two tokens of the name {twice!r}")
    return records


def _record(words: list[str], where: str) -> TokenRecord:
    name, digest, *options = words if len(words) > 1 else [*words, ""]
    if not NAME.fullmatch(name):
        raise _wrong(f"{where}: the name is {name[:80]!r}, expected letters, digits and any of _ . -")
    if not digest.startswith(HASH_PREFIX) or not _DIGEST.fullmatch(digest.removeprefix(HASH_PREFIX)):
        raise _wrong(f"{where}: expected {HASH_PREFIX} and 64 hexadecimal digits behind the name")
    is_admin, max_in_flight, requests_per_s = False, 0, 0.0
    for option in options:
        key, _, value = option.partition("=")
        try:
            if option == "admin":
                is_admin = True
            elif key == "max_in_flight":
                max_in_flight = int(value)
            elif key == "requests_per_s":
                requests_per_s = float(value)
            else:
                raise ValueError
        except ValueError:
            raise _wrong(f"{where}: {option[:80]!r}, expected admin, max_in_flight=N or requests_per_s=X") from None
    if max_in_flight < 0 or not math.isfinite(requests_per_s) or requests_per_s < 0:
        raise _wrong(f"{where}: limits must be 0 (none) or more")
    return TokenRecord(name, bytes.fromhex(digest.removeprefix(HASH_PREFIX)), is_admin, max_in_flight, requests_per_s)


def _wrong(message: str) -> ConfigurationError:
    return ConfigurationError(f"security.tokens_file: {message}", field="security.tokens_file")
