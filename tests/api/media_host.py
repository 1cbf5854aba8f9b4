"""A web server for tests that fetch: each path answers in a way of its own, and it notes who asked for what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

Answer = Callable[[asyncio.StreamWriter], "asyncio.Future[None] | object"]


class MediaHost:
    """`pages`: path -> the raw response. `asked` are the paths, `hosts` the Host headers, in order."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.hosts: list[str] = []
        self.port = 0
        self.never_ends = b""
        self.num_sent = 0

    def page(self, path: str, body: bytes, status: str = "200 OK", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.pages[path] = "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def redirect(self, path: str, location: str) -> None:
        self.page(path, b"", "302 Found", Location=location)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split()[1]
            self.asked.append(path)
            self.hosts.append(head.lower().partition("\r\nhost:")[2].partition("\r\n")[0].strip())
            if path == "/slow":
                await asyncio.sleep(3_600)
            if path == "/endless":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    writer.write(b"x" * 65_536)
                    await writer.drain()
                    self.num_sent += 65_536
            writer.write(self.pages.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def media_host() -> AsyncIterator[MediaHost]:
    host = MediaHost()
    server = await asyncio.start_server(host._answer, "127.0.0.1", 0)
    host.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()
