"""The stub stage and the router, each in a process of its own, as where they are used."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

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
def running_router(step_s: float) -> Iterator[RunningRouter]:
    """A router in front of one stub actor whose steps take `step_s`."""
    context = multiprocessing.get_context("spawn")
    stub_end, router_end = context.Pipe(), context.Pipe()
    stub = context.Process(target=_run_stub, args=(stub_end[1], step_s), daemon=True)
    stub.start()
    try:
        stub_endpoint = _received(stub_end[0])
        router = context.Process(target=_run_router, args=(router_end[1], stub_endpoint), daemon=True)
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


def _run_router(pipe: Connection, stub_endpoint: str) -> None:
    from router import event_loop
    from router.api.answering import AnsweringService
    from router.api.inference_service import InferenceService
    from router.control.membership import Member, Membership, StageName
    from router.dispatch.dispatcher import Dispatcher
    from triptych.config import DeploymentConfig
    from triptych.models_folder import BUILT_IN_FOLDER
    from triptych.rpc.channels import ChannelPool
    from triptych.rpc.server import RpcServer
    from triptych.v1 import common_pb2, inference_pb2, inference_pb2_grpc

    config = DeploymentConfig.from_sources(overrides={"limits": {"max_pending_requests": 4_096}}, environment={})

    async def serve() -> None:
        membership = Membership()
        channels = ChannelPool(config.limits.max_message_bytes)
        dispatcher = Dispatcher(config, "tiny", BUILT_IN_FOLDER, membership, channels)
        stub = Member(
            actor_id="stub",
            stage=StageName.PREFILL_DECODE,
            endpoint=stub_endpoint,
            host_id="",
            lanes=("grpc",),
            model_fingerprint="",
            dtype=common_pb2.DATA_TYPE_FLOAT32,
            multimodal_disaggregated=True,
        )
        membership.set([stub])
        server = RpcServer("127.0.0.1", 0, config.limits.max_message_bytes)
        server.add(
            inference_pb2_grpc.add_InferenceServiceServicer_to_server,
            InferenceService(AnsweringService.over(dispatcher, config, "tiny")),
            inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
        )
        pipe.send_bytes(f"127.0.0.1:{await server.start()}".encode())
        while True:
            question = await asyncio.to_thread(pipe.recv_bytes)
            pipe.send_bytes(str(_answer(question.decode())).encode())

    event_loop.run(serve())


def _answer(question: str) -> float:
    if question == "cpu":
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())
