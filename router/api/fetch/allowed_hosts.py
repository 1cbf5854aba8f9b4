"""Which hosts may be asked for media: none that the operator did not name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from triptych.errors import InvalidRequest

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_URL_LENGTH = 8_192
_SETTING = "fetch.allowed_hosts"
# Characters of a target that stand for themselves; the rest is percent-encoded before it is sent.
_SAFE = "/?:@!$&'()*+,;=%~-._[]"


@dataclass(frozen=True)
class MediaUrl:
    """A URL taken apart once; what is checked is what is asked. `host` is ASCII and lower case, without brackets."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str, field: str) -> MediaUrl:
        """Raises InvalidRequest for what is no http(s) URL in ASCII, or carries a name and password."""
        if len(text) > MAX_URL_LENGTH:
            raise InvalidRequest(f"{field} has {len(text)} characters, expected at most {MAX_URL_LENGTH}", field=field)
        # urlsplit drops some of these without a word, and other parsers end the host at a backslash.
        if not text.isascii() or any(character <= " " or character in '\\"<>^`{|}\x7f' for character in text):
            raise _wrong(field, "has characters that a URL can't have; percent-encode them")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise _wrong(field, f"is no URL: {error}") from None
        scheme = parts.scheme.lower()
        if scheme not in DEFAULT_PORTS:
            raise _wrong(field, f"has the scheme {scheme[:40]!r}, expected http, https or data")
        if parts.username is not None or parts.password is not None:
            raise _wrong(field, "carries a user name or password")
        if not parts.hostname:
            raise _wrong(field, "names no host")
        target = quote(parts.path or "/", _SAFE) + (f"?{quote(parts.query, _SAFE)}" if parts.query else "")
        return cls(scheme, parts.hostname.rstrip("."), DEFAULT_PORTS[scheme] if port is None else port, target)

    @property
    def origin(self) -> str:
        """As it is told in errors: without path and query, which may hold secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class AllowedHosts:
    """The entries of fetch.allowed_hosts: 'host', 'host:port', '*.domain', '*'; without a port: 80 and 443."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._entries = [_split(entry.lower()) for entry in entries]

    def check(self, url: MediaUrl, field: str) -> None:
        """Raises InvalidRequest, saying what would allow it, for a host that no entry names."""
        if any(_matches(host, port, url) for host, port in self._entries):
            return
        named = "no host is allowed" if not self._entries else "the host is not among those allowed"
        raise InvalidRequest(
            f"{field}: {url.origin} is not fetched, {named}; send the bytes in a data: URL, or have the operator add "
            f"{url.host!r} to {_SETTING}",
            field=field,
        )


def _split(entry: str) -> tuple[str, int | None]:
    host, colon, port = entry.rpartition(":")
    if colon and port.isdecimal() and (host.startswith("[") or ":" not in host):
        return host.strip("[]"), int(port)
    return entry.strip("[]"), None


def _matches(host: str, port: int | None, url: MediaUrl) -> bool:
    if url.port not in (DEFAULT_PORTS.values() if port is None else (port,)):
        return False
    if host == "*":
        return True
    return url.host.endswith(host[1:]) if host.startswith("*.") else url.host == host


def _wrong(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {what}", field=field)
