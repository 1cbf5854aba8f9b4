"""A running system with both client ports, as `triptych serve` opens them, and what its tests share."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
from harness import ONE_OF_EACH, InProcessSystem, Topology, _NoScaler
from PIL import Image, ImageDraw

from router.api.client_ports import ClientPorts
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.rpc.channels import ChannelPool
from triptych.rpc.tls import StageTls

QUESTION = "What is in the picture?"
RIGHT_ANSWER = "A red circle."


class HttpSystem:
    """`url` is that of the HTTP API, `rpc` host:port of gRPC."""

    def __init__(self, system: InProcessSystem, ports: ClientPorts, rpc: str) -> None:
        self.system = system
        self.ports = ports
        self.rpc = rpc
        self.url = ports.http_endpoint

    def openai(self, token: str = "none", **options: Any) -> openai.AsyncOpenAI:
        options.setdefault("max_retries", 0)
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=token, timeout=20.0, **options)

    def http(self, **options: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, timeout=20.0, trust_env=False, **options)

    async def metric(self, line: str) -> float:
        """The value of the metric line that begins so; 0 when there is none."""
        async with self.http() as client:
            page = (await client.get("/metrics")).text
        return sum(float(row.rsplit(" ", 1)[1]) for row in page.splitlines() if row.startswith(line))

    async def wait_until_decoding(self) -> None:
        """Returns when a request runs on an actor."""
        for _ in range(1_000):
            if (await self.system.held())["running"]:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("nothing runs")


@asynccontextmanager
async def http_system(
    folder: Path = BUILT_IN_FOLDER, topology: Topology = ONE_OF_EACH, **overrides: Any
) -> AsyncIterator[HttpSystem]:
    overrides["router"] = {"port": 0, "http_port": 0, **overrides.get("router", {})}
    async with InProcessSystem(folder, topology, **overrides) as system:
        channels = ChannelPool(
            system.config.limits.max_message_bytes, StageTls.from_config(system.config.security.stages)
        )
        ports = ClientPorts(system.config, "tiny", system.dispatcher, system.membership, channels, _NoScaler())
        rpc = await ports.start()
        await ports.set_serving(True)
        try:
            yield HttpSystem(system, ports, rpc)
        finally:
            await ports.stop(0)
            await channels.close()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any] | str) -> list[dict[str, Any]]:
    """The messages of a chat with one question."""
    return [{"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}]


def circle(color: tuple[int, int, int] = (220, 30, 30)) -> bytes:
    """A picture that the small model knows the answer to."""
    picture = Image.new("RGB", (112, 112), (245, 245, 245))
    ImageDraw.Draw(picture).ellipse((32, 32, 80, 80), fill=color)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
