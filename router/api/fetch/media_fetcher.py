"""MediaFetcher: the bytes behind a URL that a client sent, within bounds."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urljoin

import httpcore2

from router.api.fetch.addresses import AddressRules
from router.api.fetch.allowed_hosts import DEFAULT_PORTS, AllowedHosts, MediaUrl
from router.api.fetch.checked_backend import AddressRefused, CheckedBackend, Resolve, resolve
from triptych.config.access import FetchSection
from triptych.errors import InvalidRequest, RequestTooLarge

_REDIRECTS = (301, 302, 303, 307, 308)
# Media are compressed already; and what unpacks to more than it weighs is not to be unpacked here.
_HEADERS = {"Accept": "image/*, video/*", "Accept-Encoding": "identity", "User-Agent": "triptych"}


class MediaFetcher:
    """Asks allowed hosts at allowed addresses; follows redirects by hand, each checked like the first URL.

    What comes is untrusted bytes: nothing is concluded from its headers. Lives on one event loop.
    """

    def __init__(self, section: FetchSection, resolve: Resolve = resolve) -> None:
        self._section = section
        self._hosts = AllowedHosts(section.allowed_hosts)
        self._backend = CheckedBackend(AddressRules(section.allowed_networks), resolve)
        self._tls = ssl.create_default_context()
        self._places = asyncio.Semaphore(section.max_concurrent)

    def check(self, url: str, field: str) -> MediaUrl:
        """Without asking anybody. Raises InvalidRequest for what will not be fetched whatever it stands for."""
        parsed = MediaUrl.parse(url, field)
        self._hosts.check(parsed, field)
        return parsed

    async def fetch(self, url: str, max_bytes: int, field: str) -> bytes:
        """Raises InvalidRequest, or RequestTooLarge for more than `max_bytes`; `field` is where the URL stands."""
        try:
            async with self._places, asyncio.timeout(self._section.timeout_s):
                return await self._follow(url, max_bytes, field)
        except TimeoutError:
            raise InvalidRequest(
                f"{field}: not fetched within {self._section.timeout_s:g} s (fetch.timeout_s)", field=field
            ) from None

    async def _follow(self, url: str, max_bytes: int, field: str) -> bytes:
        for _ in range(self._section.max_redirects + 1):
            parsed = self.check(url, field)
            answer = await self._ask(parsed, max_bytes, field)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(f"{parsed.origin}{parsed.target}", answer.location)
        raise InvalidRequest(
            f"{field}: more than {self._section.max_redirects} redirects (fetch.max_redirects)", field=field
        )

    async def _ask(self, url: MediaUrl, max_bytes: int, field: str) -> bytes | _Redirect:
        """One request over a connection of its own."""
        host = f"[{url.host}]" if ":" in url.host else url.host
        header = host if url.port == DEFAULT_PORTS[url.scheme] else f"{host}:{url.port}"
        asked = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        headers = {"Host": header, **_HEADERS, "Connection": "close"}
        try:
            async with (
                httpcore2.AsyncConnectionPool(ssl_context=self._tls, network_backend=self._backend) as pool,
                pool.stream("GET", asked, headers=list(headers.items())) as response,
            ):
                return await _read(response, max_bytes, url, field)
        except AddressRefused:
            raise InvalidRequest(
                f"{field}: {url.origin} is not fetched, its address is not public (fetch.allowed_networks)", field=field
            ) from None
        except (OSError, UnicodeError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
            # No more than that: how a connection failed would tell a client what listens where.
            raise InvalidRequest(f"{field}: {url.origin} could not be fetched", field=field) from None


class _Redirect:
    def __init__(self, location: str) -> None:
        self.location = location


async def _read(response: httpcore2.Response, max_bytes: int, url: MediaUrl, field: str) -> bytes | _Redirect:
    headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
    if response.status in _REDIRECTS and b"location" in headers:
        return _Redirect(headers[b"location"])
    if response.status != 200:
        raise InvalidRequest(f"{field}: {url.origin} answered {response.status}, expected 200", field=field)
    if headers.get(b"content-encoding", "identity").lower() != "identity":
        raise InvalidRequest(f"{field}: {url.origin} sent packed bytes although none were asked for", field=field)
    promised = headers.get(b"content-length", "")
    if promised.isdecimal() and int(promised[:20]) > max_bytes:
        raise _too_large(field, max_bytes)
    data = bytearray()
    async for piece in response.aiter_stream():
        data += piece
        if len(data) > max_bytes:
            raise _too_large(field, max_bytes)
    return bytes(data)


def _too_large(field: str, max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"{field}: more than {max_bytes} bytes (limits.max_image_bytes, limits.max_video_bytes, "
        "limits.max_message_bytes)",
        field=field,
    )
