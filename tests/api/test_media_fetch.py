"""Media by URL: where this process may be led, and where not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import openai
import pytest
import pytest_asyncio
from http_system import QUESTION, RIGHT_ANSWER, circle, http_system, user
from media_host import MediaHost, media_host

from router.api.fetch.addresses import AddressRules
from router.api.fetch.media_fetcher import MediaFetcher
from triptych.config.access import FetchSection
from triptych.errors import InvalidRequest, RequestTooLarge

FIELD = "messages[0].content[0].image_url.url"
LOOPBACK = ("127.0.0.0/8",)
PUBLIC = "93.184.216.34"


@pytest_asyncio.fixture
async def host() -> AsyncIterator[MediaHost]:
    async with media_host() as host:
        host.page("/a.png", b"picture")
        yield host


class Names:
    """A resolver that answers what a test says, in turn; the last answer again and again."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return list(answer)


def fetcher(
    host: MediaHost, names: Names | None = None, networks: Sequence[str] = LOOPBACK, **section: Any
) -> MediaFetcher:
    """May ask good.example on the host's port, which is an address of this machine."""
    section.setdefault("allowed_hosts", (f"good.example:{host.port}",))
    return MediaFetcher(FetchSection(allowed_networks=tuple(networks), **section), names or Names(["127.0.0.1"]))


async def fetch(fetcher: MediaFetcher, url: str, max_bytes: int = 1_000) -> bytes:
    return await fetcher.fetch(url, max_bytes, FIELD)


async def test_an_allowed_host_is_asked_by_its_name_at_its_address(host: MediaHost) -> None:
    names = Names(["127.0.0.1"])
    assert await fetch(fetcher(host, names), f"http://good.example:{host.port}/a.png") == b"picture"
    assert host.hosts == [f"good.example:{host.port}"] and names.asked == ["good.example"]


async def test_no_host_is_allowed_unless_named(host: MediaHost) -> None:
    with pytest.raises(InvalidRequest, match=r"fetch\.allowed_hosts") as refused:
        await fetch(MediaFetcher(FetchSection(), Names(["127.0.0.1"])), f"http://good.example:{host.port}/a.png")
    assert refused.value.field == FIELD and not host.asked


@pytest.mark.parametrize(
    ("entry", "url", "is_allowed"),
    [
        ("a.example", "https://a.example/x", True),
        ("a.example", "http://A.Example./x", True),
        ("a.example", "https://a.example:8443/x", False),
        ("a.example:8443", "https://a.example:8443/x", True),
        ("a.example", "https://b.a.example/x", False),
        ("a.example", "https://a.example.evil.example/x", False),
        ("*.a.example", "https://b.a.example/x", True),
        ("*.a.example", "https://a.example/x", False),
        ("*.a.example", "https://evila.example/x", False),
        ("*", "https://any.example/x", True),
        ("*", "https://any.example:22/x", False),
    ],
)
async def test_which_hosts_an_entry_names(entry: str, url: str, is_allowed: bool) -> None:
    rules = MediaFetcher(FetchSection(allowed_hosts=(entry,)))
    if is_allowed:
        rules.check(url, FIELD)
        return
    with pytest.raises(InvalidRequest):
        rules.check(url, FIELD)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://good.example/a",
        "gopher://good.example/a",
        "//good.example/a",
        "http:///a",
        "/etc/passwd",
        "http://user:secret@good.example/a",
        "http://good.example\\@evil.example/",
        "http://good.example /",
        "http://good.example/\r\nX: y",
        "http://good.example:99999/",
        "http://göod.example/",
        "http://[::1/",
        "javascript:alert(1)",
        "",
        "http://good.example/" + "x" * 10_000,
    ],
)
async def test_what_is_no_http_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        MediaFetcher(FetchSection(allowed_hosts=("*",))).check(url, FIELD)
    assert refused.value.field == FIELD and "secret" not in refused.value.message


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "no address",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not AddressRules().is_allowed(address)


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:220:1:248:1893:25c8:1946", f"::ffff:{PUBLIC}"])
def test_addresses_that_are_public(address: str) -> None:
    assert AddressRules().is_allowed(address)


def test_ranges_that_the_operator_names() -> None:
    rules = AddressRules(["10.1.0.0/16"])
    assert rules.is_allowed("10.1.2.3") and rules.is_allowed("::ffff:10.1.2.3")
    assert not rules.is_allowed("10.2.0.1") and not rules.is_allowed("2002:a01:203::")


@pytest.mark.parametrize("answer", [["127.0.0.1"], [PUBLIC, "127.0.0.1"], ["::ffff:127.0.0.1"], []])
async def test_a_name_that_stands_for_a_private_address_is_refused_after_dns(
    host: MediaHost, answer: list[str]
) -> None:
    with pytest.raises(InvalidRequest):
        await fetch(fetcher(host, Names(answer), networks=()), f"http://good.example:{host.port}/a.png")
    assert not host.asked, "somebody was connected to"


@pytest.mark.parametrize("literal", ["127.0.0.1", "2130706433", "0x7f000001", "127.1", "[::1]", "[::ffff:7f00:1]"])
async def test_other_spellings_of_a_private_address(host: MediaHost, literal: str) -> None:
    """The system's own resolver, which knows them all."""
    section = FetchSection(allowed_hosts=(f"{literal}:{host.port}",))
    with pytest.raises(InvalidRequest):
        await fetch(MediaFetcher(section), f"http://{literal}:{host.port}/a.png")
    assert not host.asked


async def test_a_name_is_resolved_once(host: MediaHost) -> None:
    """Rebinding: the second answer would be the private one, and nobody asks for it."""
    names = Names(["127.0.0.2"], ["127.0.0.1"])
    rules = ("127.0.0.2/32",)
    with pytest.raises(InvalidRequest, match="could not be fetched"):
        await fetch(fetcher(host, names, networks=rules), f"http://good.example:{host.port}/a.png")
    assert names.asked == ["good.example"] and not host.asked


async def test_each_redirect_is_checked(host: MediaHost) -> None:
    good = f"http://good.example:{host.port}"
    host.redirect("/once", "/a.png")
    assert await fetch(fetcher(host), f"{good}/once") == b"picture"
    for location in (f"http://evil.example:{host.port}/a.png", "file:///etc/passwd", "//evil.example/x", "gopher://x/"):
        host.redirect("/away", location)
        host.asked.clear()
        with pytest.raises(InvalidRequest):
            await fetch(fetcher(host), f"{good}/away")
        assert host.asked == ["/away"]
    # The same host, which has moved to an address that is not allowed.
    host.asked.clear()
    names = Names(["127.0.0.1"], ["127.0.0.3"])
    with pytest.raises(InvalidRequest, match="not public"):
        await fetch(fetcher(host, names, networks=("127.0.0.1/32",)), f"{good}/once")
    assert host.asked == ["/once"]


async def test_redirects_are_bounded(host: MediaHost) -> None:
    host.redirect("/loop", "/loop")
    with pytest.raises(InvalidRequest, match=r"fetch\.max_redirects"):
        await fetch(fetcher(host, max_redirects=2), f"http://good.example:{host.port}/loop")
    assert host.asked == ["/loop"] * 3


async def test_sizes_are_bounded_while_they_stream(host: MediaHost) -> None:
    good = f"http://good.example:{host.port}"
    host.page("/big", b"x" * 1_001)
    host.page("/fits", b"x" * 1_000)
    assert len(await fetch(fetcher(host), f"{good}/fits")) == 1_000
    for path in ("/big", "/endless"):
        with pytest.raises(RequestTooLarge) as large:
            await fetch(fetcher(host), good + path)
        assert large.value.field == FIELD
    assert host.num_sent < 20_000_000


async def test_time_is_bounded(host: MediaHost) -> None:
    begun = time.monotonic()
    with pytest.raises(InvalidRequest, match=r"fetch\.timeout_s"):
        await fetch(fetcher(host, timeout_s=0.2), f"http://good.example:{host.port}/slow")
    assert time.monotonic() - begun < 5.0


async def test_packed_bytes_and_failures_are_refused(host: MediaHost) -> None:
    good = f"http://good.example:{host.port}"
    host.page("/packed", b"x", Content_Encoding="gzip")
    host.pages["/broken"] = b"SSH-2.0-OpenSSH_9.9\r\n\r\n"
    for path, says in (("/packed", "packed"), ("/none", "answered 404"), ("/broken", "could not be fetched")):
        with pytest.raises(InvalidRequest, match=says) as refused:
            await fetch(fetcher(host), good + path)
        assert "SSH" not in refused.value.message


async def test_a_picture_by_url_is_answered_and_a_refused_one_asks_nobody(host: MediaHost) -> None:
    host.page("/circle.png", circle(), Content_Type="text/html")
    section = {"allowed_hosts": [f"127.0.0.1:{host.port}"], "allowed_networks": ["127.0.0.1/32"]}
    async with http_system(fetch=section) as running:

        async def ask(*urls: str) -> Any:
            parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            client = running.openai()
            answer = await client.chat.completions.create(
                messages=user(*parts, QUESTION), model="tiny", max_tokens=8, temperature=0
            )
            return answer.choices[0].message.content

        good = f"http://127.0.0.1:{host.port}"
        assert await ask(f"{good}/circle.png") == RIGHT_ANSWER
        host.asked.clear()
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(f"{good}/circle.png", "http://elsewhere.example/x.png")
        assert refused.value.param == "messages[0].content[1].image_url.url" and not host.asked
        with pytest.raises(openai.BadRequestError) as broken:
            await ask(f"{good}/a.png")
        assert broken.value.param == "messages[0].content[0].image_url.url"
        assert running.ports.answering.budget.num_held == 0
