"""TLS on the clients' ports, and mutual TLS between router and stages, with certificates made here."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from certificates import Authority, Pair
from harness import StageName
from http_system import QUESTION, RIGHT_ANSWER, circle, http_system, image, user

from triptych.client import AsyncClient
from triptych.config import DeploymentConfig
from triptych.errors import ConfigurationError, Unavailable
from triptych.rpc.channels import ChannelPool
from triptych.rpc.tls import StageTls
from triptych.v1 import admin_pb2, admin_pb2_grpc

STAGE_NAME = "triptych-stage"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


def stage_tls(authority: Authority, pair: Pair) -> dict[str, Any]:
    return {"certificate": str(pair.certificate), "key": str(pair.key), "authority": str(authority.certificate)}


async def test_clients_speak_tls_with_both_ports(authority: Authority) -> None:
    pair = authority.sign("router", "127.0.0.1")
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    async with http_system(security={"clients": tls}) as running:
        assert running.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(authority.certificate))
        body = {"messages": user(image(circle()), QUESTION), "temperature": 0, "max_tokens": 8}
        async with httpx2.AsyncClient(verify=trusted, trust_env=False) as client:
            answer = await client.post(f"{running.url}/v1/chat/completions", json=body)
        assert answer.json()["choices"][0]["message"]["content"] == RIGHT_ANSWER
        async with AsyncClient(running.rpc, timeout_s=10, authority=authority.certificate) as client:
            assert (await client.ask(QUESTION, images=[circle()])).text == RIGHT_ANSWER
        async with AsyncClient(running.rpc, timeout_s=3) as client:
            with pytest.raises(Unavailable):
                await client.ask(QUESTION)
        async with running.http() as client:
            with pytest.raises(httpx2.HTTPError):
                await client.get(running.url.replace("https://", "http://") + "/health")


async def test_router_and_stages_know_one_another(authority: Authority, tmp_path: Path) -> None:
    """The whole walk over mutual TLS: calls, step streams, and the lane grpc between two stages."""
    section = stage_tls(authority, authority.sign(STAGE_NAME))
    overrides = {"security": {"stages": section}, "transport": {"lanes": ["grpc"]}}
    async with http_system(**overrides) as running:
        async with AsyncClient(running.rpc, timeout_s=10) as client:
            answer = await client.ask(QUESTION, images=[circle()], max_tokens=8)
            assert answer.text == RIGHT_ANSWER
            assert list(answer.route.embedding_lanes) == ["grpc"] and answer.route.kv_lane == "grpc"
        for stage in (StageName.ENCODER, StageName.PREFILL, StageName.DECODE):
            (member,) = running.system.membership.members(stage)
            await stage_refuses(member.endpoint, None)
            stranger = Authority(tmp_path / f"theirs-{stage}")
            theirs = stage_tls(stranger, stranger.sign(STAGE_NAME))
            await stage_refuses(member.endpoint, theirs)
            # Trusts our authority, but shows a certificate of another.
            await stage_refuses(member.endpoint, theirs | {"authority": str(authority.certificate)})


async def test_the_router_talks_to_nobody_who_is_no_stage(authority: Authority, tmp_path: Path) -> None:
    """An actor with a certificate of our authority but of another name, and one of another authority."""
    ours = stage_tls(authority, authority.sign(STAGE_NAME))
    stranger = Authority(tmp_path / "theirs")
    for theirs in (stage_tls(authority, authority.sign("mail-server")), stage_tls(stranger, stranger.sign(STAGE_NAME))):
        async with http_system(security={"stages": theirs | {"name": "mail-server"}}) as running:
            (member,) = running.system.membership.members(StageName.DECODE)
            await stage_refuses(member.endpoint, ours)


async def stage_refuses(endpoint: str, section: dict[str, Any] | None) -> None:
    tls = None
    if section is not None:
        config = DeploymentConfig.from_sources(overrides={"security": {"stages": section}}, environment={})
        tls = StageTls.from_config(config.security.stages)
    channels = ChannelPool(2**20, tls)
    stub = admin_pb2_grpc.AdminServiceStub(channels.get(endpoint))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetActorInfo(admin_pb2.GetActorInfoRequest(), timeout=3)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    await channels.close()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"clients": {"certificate": "a.pem"}}, "certificate and key"),
        ({"stages": {"certificate": "a.pem", "key": "a.key"}}, "authority"),
        ({"clients": {"certificate": "/no/such.pem", "key": "/no/such.key"}}, "/no/such.pem"),
        ({"stages": {"certificate": "/no/a.pem", "key": "/no/a.key", "authority": "/no/ca.pem"}}, "/no/a.pem"),
    ],
)
async def test_certificates_that_are_not_there_are_told_at_the_start(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        async with http_system(security=section):
            pass
