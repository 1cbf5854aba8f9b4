"""Bearer tokens: who calls, told by a file of hashes that may change while the server runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.errors import ConfigurationError, Overloaded, Unauthenticated
from triptych.rpc.token_file import MAX_TOKEN_LENGTH, TokenRecord, read_tokens

logger = logging.getLogger(__name__)

SCHEME = "bearer"
_IN_FLIGHT_RETRY_S = 1.0  # what comes free, and when, depends on the caller's own requests


class Caller:
    """One token in use: its rights, and how much it has in hand. Lives on one event loop."""

    def __init__(self, record: TokenRecord, clock: Callable[[], float] = time.monotonic) -> None:
        self.record = record
        self._clock = clock
        self._num_in_flight = 0
        self._allowance = record.burst
        self._allowance_at = clock()

    @property
    def name(self) -> str:
        """Name of the token; empty for the one caller of a server without tokens."""
        return self.record.name

    @property
    def is_admin(self) -> bool:
        return self.record.is_admin

    @property
    def num_in_flight(self) -> int:
        return self._num_in_flight

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Counts a call for the body's duration. Raises Overloaded, with retry advice, over the token's limits."""
        limit = self.record.max_in_flight
        if limit and self._num_in_flight >= limit:
            raise Overloaded(
                f"token {self.name!r} has {self._num_in_flight} requests in flight, {limit} are allowed "
                "(max_in_flight of its line in security.tokens_file)",
                field="security.tokens_file",
                retry_after_s=_IN_FLIGHT_RETRY_S,
            )
        self._spend()
        self._num_in_flight += 1
        try:
            yield
        finally:
            self._num_in_flight -= 1

    def _spend(self) -> None:
        """Takes one request from what the rate has granted so far, at most a second's worth (and at least one)."""
        rate = self.record.requests_per_s
        if not rate:
            return
        now = self._clock()
        self._allowance = min(self.record.burst, self._allowance + rate * (now - self._allowance_at))
        self._allowance_at = now
        if self._allowance < 1:
            raise Overloaded(
                f"token {self.name!r} may make {rate:g} requests a second "
                "(requests_per_s of its line in security.tokens_file)",
                field="security.tokens_file",
                retry_after_s=(1 - self._allowance) / rate,
            )
        self._allowance -= 1


class Access:
    """Tells callers by their token. Without a file everybody is one caller who may do everything."""

    def __init__(self, tokens_file: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigurationError for a file that can't be read or has a wrong line."""
        self._path = Path(tokens_file).expanduser() if tokens_file else None
        self._clock = clock
        self._anybody = Caller(TokenRecord(name="", digest=b"", is_admin=True), clock)
        self._callers: list[Caller] = []
        self._version: tuple[int, ...] = ()
        if self._path is not None:
            self._version = _version(self._path)
            self._load(self._path)

    @property
    def is_open(self) -> bool:
        """No tokens are asked for."""
        return self._path is None

    def caller(self, authorization: str | None) -> Caller:
        """Whose token stands in an Authorization header (`Bearer TOKEN`). Raises Unauthenticated."""
        if self._path is None:
            return self._anybody
        self._reload_if_changed(self._path)
        if not authorization:
            raise Unauthenticated("no token, expected the header 'Authorization: Bearer TOKEN'", field="authorization")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != SCHEME or len(token) > MAX_TOKEN_LENGTH:
            raise Unauthenticated("the header Authorization is not 'Bearer TOKEN'", field="authorization")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        found: Caller | None = None
        for caller in self._callers:  # All of them, so that the time says nothing.
            if hmac.compare_digest(caller.record.digest, digest):
                found = caller
        if found is None:
            raise Unauthenticated("the token is not known here", field="authorization")
        return found

    def _reload_if_changed(self, path: Path) -> None:
        """What can't be read leaves the tokens as they were, told in the log once for each change."""
        try:
            version = _version(path)
        except ConfigurationError as error:
            version = ()
            if version != self._version:
                logger.error("the tokens stay as they were: %s", error)
        if version == self._version:
            return
        self._version = version
        if not version:
            return
        try:
            self._load(path)
        except ConfigurationError as error:
            logger.error("the tokens stay as they were: %s", error)

    def _load(self, path: Path) -> None:
        """A token whose line did not change keeps what it has in hand."""
        known = {caller.record: caller for caller in self._callers}
        self._callers = [known.get(record) or Caller(record, self._clock) for record in read_tokens(path)]
        logger.info("%d tokens read from %s", len(self._callers), path)


def _version(path: Path) -> tuple[int, ...]:
    """Changes when the file is written or replaced (as Kubernetes does with a mounted secret)."""
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigurationError(
            f"security.tokens_file: can't read {path}: {error.strerror}", field="security.tokens_file"
        ) from None
    return (status.st_mtime_ns, status.st_size, status.st_ino)
