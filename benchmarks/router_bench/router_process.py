"""The router of the benchmark: the ports, dispatcher and processes of the real one, without a controller."""

from __future__ import annotations

import asyncio
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

from router import event_loop
from router.api.client_ports import NO_HTTP, ClientPorts
from router.api.scaler import Scaler
from router.control.membership import Member, Membership, StageName
from router.dispatch.dispatcher import Dispatcher
from router.processes.first_process import FirstProcess
from router.processes.share import share_of
from triptych.config import DeploymentConfig
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.rpc.channels import ChannelPool
from triptych.v1 import admin_pb2, common_pb2

_USER_TIME, _SYSTEM_TIME = 11, 12  # fields of /proc/PID/stat behind the command's name


class _NoScaler:
    """There are no actors to begin or end, and nobody asks for it."""

    def topology(self) -> list[admin_pb2.StageStatus]:
        return []


def run_router(pipe: Connection, stub_endpoint: str, num_processes: int) -> None:
    """Serves until it is killed; tells its endpoint, then answers "cpu" (seconds) and "memory" (bytes) of all its
    processes."""
    event_loop.run(_serve(pipe, stub_endpoint, num_processes))


async def _serve(pipe: Connection, stub_endpoint: str, num_processes: int) -> None:
    overrides = {
        "limits": {"max_pending_requests": 4_096},
        "router": {"processes": num_processes, "port": 0, "http_port": NO_HTTP},
    }
    config = share_of(DeploymentConfig.from_sources(overrides=overrides, environment={}))
    membership, channels = Membership(), ChannelPool(config.limits.max_message_bytes)
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
    first = FirstProcess(config, membership) if num_processes > 1 else None
    shared = None if first is None else first.shared
    ports = ClientPorts(config, "tiny", dispatcher, membership, channels, cast(Scaler, _NoScaler()), shared)
    endpoint = await ports.start()
    process_ids = [os.getpid()]
    if first is not None:
        await first.start(ports)
        process_ids += first.process_ids
    pipe.send_bytes(endpoint.encode())
    while True:
        question = (await asyncio.to_thread(pipe.recv_bytes)).decode()
        answer = _cpu_s if question == "cpu" else _memory_bytes
        pipe.send_bytes(str(sum(map(answer, process_ids))).encode())


def _cpu_s(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) / os.sysconf("SC_CLK_TCK")


def _memory_bytes(process_id: int) -> float:
    return float(int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
