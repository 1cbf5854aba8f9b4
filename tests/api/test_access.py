"""Bearer tokens on both ports. Every test fails when its check is taken out of the server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from http_system import QUESTION, RIGHT_ANSWER, HttpSystem, circle, http_system, image, user

from router.cli.token import run_token_new
from triptych.client import AsyncClient
from triptych.errors import ConfigurationError, Overloaded, PermissionDenied, Unauthenticated
from triptych.rpc import access as access_module
from triptych.rpc.access import Access
from triptych.rpc.token_file import TokenRecord, new_token, read_tokens
from triptych.v1 import inference_pb2, inference_pb2_grpc

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 8}


class Tokens:
    """A file of tokens that a test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []

    def add(self, name: str, **rights: Any) -> str:
        token, digest = new_token()
        self._lines.append(TokenRecord(name, digest, **rights).line())
        self._write()
        return token

    def remove(self, name: str) -> None:
        self._lines = [line for line in self._lines if not line.startswith(f"{name} ")]
        self._write()

    def _write(self) -> None:
        """As a mounted secret changes: another file in the old one's place."""
        new = self.path.with_suffix(".new")
        new.write_text("# who may call\n" + "\n".join(self._lines))
        os.replace(new, self.path)


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens")


def secured(tokens: Tokens, **overrides: Any) -> Any:
    return http_system(security={"tokens_file": str(tokens.path)}, **overrides)


async def ask(running: HttpSystem, token: str, **options: Any) -> str:
    client = running.openai(token, **options)
    answer = await client.chat.completions.create(messages=user(image(circle()), QUESTION), **GREEDY)
    return str(answer.choices[0].message.content)


async def test_both_ports_ask_for_a_token_that_they_know(tokens: Tokens) -> None:
    token = tokens.add("alice")
    async with secured(tokens) as running:
        assert await ask(running, token) == RIGHT_ANSWER
        async with AsyncClient(running.rpc, timeout_s=10, token=token) as client:
            assert (await client.ask(QUESTION, images=[circle()])).text == RIGHT_ANSWER
        for wrong in ("none", token[:-1], token + "x", hashlib.sha256(token.encode()).hexdigest()):
            with pytest.raises(openai.AuthenticationError):
                await ask(running, wrong)
            async with AsyncClient(running.rpc, timeout_s=10, token=wrong) as client:
                with pytest.raises(Unauthenticated):
                    await client.ask(QUESTION)
        async with AsyncClient(running.rpc, timeout_s=10) as client:
            with pytest.raises(Unauthenticated):
                await client.ask(QUESTION)
        async with running.http() as client:
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
                answer = await client.get(path)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path
            assert (await client.get("/health")).status_code == (await client.get("/ready")).status_code == 200


async def test_admin_calls_take_an_admins_token(tokens: Tokens) -> None:
    plain, admin = tokens.add("alice"), tokens.add("root", is_admin=True)
    async with secured(tokens) as running:
        async with AsyncClient(running.rpc, timeout_s=10, token=plain) as client:
            for call in (client.topology(), client.actor_info("encoder-0"), client.scale("encoder", 2)):
                with pytest.raises(PermissionDenied):
                    await call
        async with AsyncClient(running.rpc, timeout_s=10, token=admin) as client:
            assert (await client.topology()).mode == "disaggregated"


async def test_a_stranger_is_refused_before_its_request_is_read(tokens: Tokens) -> None:
    """A request far over the limit of messages: read at all, it would be refused for its size."""
    tokens.add("alice")
    async with secured(tokens, limits={"max_message_bytes": 100_000}) as running:
        async with grpc.aio.insecure_channel(running.rpc) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            request = inference_pb2.GenerateRequest(model="x" * 3_000_000)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Generate(request, timeout=10).read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        async with running.http() as client:
            assert (await client.post("/v1/chat/completions", content=b"x" * 300_000)).status_code == 401


async def test_tokens_come_and_go_without_a_restart(tokens: Tokens) -> None:
    alice = tokens.add("alice")
    async with secured(tokens) as running:
        assert await ask(running, alice) == RIGHT_ANSWER
        bob = tokens.add("bob")
        assert await ask(running, bob) == RIGHT_ANSWER
        tokens.remove("alice")
        with pytest.raises(openai.AuthenticationError):
            await ask(running, alice)
        tokens.path.write_text("bob sha256:half a li")
        assert await ask(running, bob) == RIGHT_ANSWER, "a broken file changes nothing"


async def test_a_token_has_limits_of_its_own(tokens: Tokens) -> None:
    one, free = tokens.add("one", max_in_flight=1), tokens.add("free")
    async with secured(tokens) as running:
        stream = await running.openai(one).chat.completions.create(
            messages=user("Count."), max_tokens=2_000, model="tiny", stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        with pytest.raises(openai.RateLimitError) as full:
            await ask(running, one)
        assert "max_in_flight" in full.value.message and int(full.value.response.headers["retry-after"]) >= 1
        async with AsyncClient(running.rpc, timeout_s=10, token=one) as client:
            with pytest.raises(Overloaded):
                await client.ask(QUESTION)
        assert await ask(running, free) == RIGHT_ANSWER, "others have their own"
        await stream.close()
        assert await ask(running, one, max_retries=5) == RIGHT_ANSWER


def test_a_rate_grants_a_seconds_worth_at_once_and_no_more(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens")
    token = tokens.add("alice", requests_per_s=2.0)
    now = [0.0]
    access = Access(str(tokens.path), clock=lambda: now[0])

    def call() -> None:
        with access.caller(f"Bearer {token}").admit():
            pass

    call()
    call()
    with pytest.raises(Overloaded) as over:
        call()
    assert over.value.retry_after_s == pytest.approx(0.5)
    now[0] += 0.5
    call()
    tokens.add("bob")
    with pytest.raises(Overloaded):
        call()  # Another line in the file does not fill the allowance up.
    now[0] += 3_600.0
    call()
    call()
    with pytest.raises(Overloaded):
        call()


def test_every_hash_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(tmp_path / "tokens")
    names = [tokens.add(name) for name in ("a", "b", "c")]
    access = Access(str(tokens.path))
    compared: list[bytes] = []
    equal = hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        compared.append(left)
        return equal(left, right)

    monkeypatch.setattr(access_module.hmac, "compare_digest", compare)
    assert access.caller(f"bearer {names[0]}").name == "a"
    assert len(compared) == 3


def test_no_token_stands_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens"
    assert run_token_new("alice", is_admin=True, max_in_flight=4, requests_per_s=2.5, file=file) == 0
    token = capsys.readouterr().out.splitlines()[0].rpartition(" ")[2]
    assert token not in file.read_text() and file.stat().st_mode & 0o077 == 0
    (record,) = read_tokens(file)
    assert (record.name, record.is_admin, record.max_in_flight, record.requests_per_s) == ("alice", True, 4, 2.5)
    assert Access(str(file)).caller(f"Bearer {token}").is_admin
    with pytest.raises(ConfigurationError, match="already"):
        run_token_new("alice", is_admin=False, max_in_flight=0, requests_per_s=0, file=file)


@pytest.mark.parametrize(
    "line",
    ["alice", "alice plain-text-token", "alice sha256:12", f"alice sha256:{'0' * 64} root", f"a/b sha256:{'0' * 64}"]
    + [f"alice sha256:{'0' * 64} max_in_flight={value}" for value in ("-1", "x", "")]
    + [f"alice sha256:{'0' * 64} requests_per_s=nan", f"a sha256:{'0' * 64}\na sha256:{'1' * 64}"],
)
def test_a_wrong_line_keeps_the_router_from_starting(tmp_path: Path, line: str) -> None:
    (tmp_path / "tokens").write_text(line)
    with pytest.raises(ConfigurationError, match=r"security\.tokens_file"):
        Access(str(tmp_path / "tokens"))


async def test_tenants_are_the_names_of_tokens(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tokens.add("alice")
    async with secured(tokens) as running:
        seen = []
        generate = running.system.dispatcher.generate

        def noting(request: Any, deadline: Any, tenant: str = "") -> Any:
            seen.append(tenant)
            return generate(request, deadline, tenant)

        monkeypatch.setattr(running.system.dispatcher, "generate", noting)
        async with AsyncClient(running.rpc, timeout_s=10, token=token) as client:
            await asyncio.gather(ask(running, token), client.ask(QUESTION))
        assert seen == ["alice", "alice"]
