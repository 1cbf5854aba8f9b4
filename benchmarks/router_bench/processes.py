"""The stub stage and the router, each in a process of its own, as where they are used."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks.router_bench.router_process import run_router

_START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class RunningRouter:
    """endpoint: of its gRPC API. `cpu_s` and `memory_bytes` ask the process."""

    endpoint: str
    _pipe: Connection

    def cpu_s(self) -> float:
        """Processor time that the router has used."""
        return self._ask("cpu")

    def memory_bytes(self) -> float:
        """Resident now."""
        return self._ask("memory")

    def _ask(self, what: str) -> float:
        self._pipe.send_bytes(what.encode())
        return float(self._pipe.recv_bytes().decode())


@contextmanager
def running_router(step_s: float, num_processes: int = 1) -> Iterator[RunningRouter]:
    """A router of so many processes in front of one stub actor whose steps take `step_s`."""
    context = multiprocessing.get_context("spawn")
    stub_end, router_end = context.Pipe(), context.Pipe()
    stub = context.Process(target=_run_stub, args=(stub_end[1], step_s), daemon=True)
    stub.start()
    try:
        stub_endpoint = _received(stub_end[0])
        router = context.Process(target=run_router, args=(router_end[1], stub_endpoint, num_processes), daemon=True)
        router.start()
        try:
            yield RunningRouter(_received(router_end[0]), router_end[0])
        finally:
            router.kill()
            router.join()
    finally:
        stub.kill()
        stub.join()


def _received(pipe: Connection) -> str:
    if not pipe.poll(_START_TIMEOUT_S):
        raise TimeoutError(f"a process did not start within {_START_TIMEOUT_S:g} s")
    return pipe.recv_bytes().decode()


def _run_stub(pipe: Connection, step_s: float) -> None:
    from benchmarks.router_bench.stub_stage import serve_stub
    from router import event_loop

    async def serve() -> None:
        _server, endpoint = await serve_stub(step_s)
        pipe.send_bytes(endpoint.encode())
        await asyncio.Event().wait()

    event_loop.run(serve())
