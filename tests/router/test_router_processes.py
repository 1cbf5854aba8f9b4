"""Several router processes behind one port: each serves, one that is killed costs its own requests, none stays."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path

import grpc
import httpx2
import pytest
from fake_actors import FakeSystem, token_at
from harness import _NoScaler
from router_helpers import make_member, text_part, user_request
from test_walk import until

from router.api.client_ports import ClientPorts
from router.control.membership import Member, StageName
from router.processes.first_process import FirstProcess
from router.processes.member_info import info_of
from router.processes.share import share_of
from router.processes.shared_metrics import add_pages
from triptych.config import DeploymentConfig
from triptych.rpc.channels import ChannelPool
from triptych.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc

NUM_PROCESSES = 3
NUM_REQUESTS = 200


class Router:
    def __init__(self, system: FakeSystem, ports: ClientPorts, first: FirstProcess, endpoint: str) -> None:
        self.system = system
        self.ports = ports
        self.first = first
        self.endpoint = endpoint

    def channel(self) -> grpc.aio.Channel:
        # Without an own pool of connections channels to one address share one.
        return grpc.aio.insecure_channel(self.endpoint, options=[("grpc.use_local_subchannel_pool", 1)])

    async def metrics(self) -> str:
        async with httpx2.AsyncClient(base_url=self.ports.http_endpoint, timeout=20.0, trust_env=False) as client:
            return (await client.get("/metrics")).text


@asynccontextmanager
async def several_processes() -> AsyncIterator[Router]:
    router = {"processes": NUM_PROCESSES, "port": 0, "http_port": 0}
    async with FakeSystem("prefill_decode", router=router) as system:
        config = share_of(system.config)
        channels = ChannelPool(2**24)
        first = FirstProcess(config, system.membership)
        ports = ClientPorts(config, "tiny", system.dispatcher, system.membership, channels, _NoScaler(), first.shared)
        endpoint = await ports.start()
        await first.start(ports)
        await ports.set_serving(True)
        first.set_serving(True)
        try:
            yield Router(system, ports, first, endpoint)
        finally:
            process_ids = first.process_ids
            await asyncio.gather(first.stop(), ports.stop(0))
            await channels.close()
            assert process_ids and not any(map(is_running, process_ids))


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def ask(router: Router, max_tokens: int = 4) -> tuple[str, str, bool]:
    """On a connection of its own: status, why, whether all tokens were right."""
    async with router.channel() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        token_ids: list[int] = []
        try:
            async for message in stub.Generate(user_request(text_part("hello"), max_tokens=max_tokens), timeout=60):
                token_ids += message.chunk.token_ids
                summary = message.summary
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or "", False
        prompt_tokens = summary.usage.prompt_tokens
        return "OK", "", token_ids == [token_at(prompt_tokens + index) for index in range(max_tokens)]


def requests_by_process(router: Router) -> Counter[str]:
    """By the router id that each process shows to actors."""
    return Counter(request.router_id for request in router.system.actors["prefill_decode-0"].requests)


async def test_all_processes_serve_and_one_that_is_killed_costs_its_own_requests() -> None:
    async with several_processes() as router:
        answers = []
        for _ in range(NUM_REQUESTS // 20):
            answers += await asyncio.gather(*(ask(router) for _ in range(20)))
        assert answers == [("OK", "", True)] * NUM_REQUESTS
        served = requests_by_process(router)
        assert len(served) == NUM_PROCESSES and sum(served.values()) == NUM_REQUESTS

        page = await router.metrics()
        answered = [line for line in page.splitlines() if line.startswith("triptych:requests_total")]
        assert len(answered) == 1 and answered[0].endswith(f" {NUM_REQUESTS}.0")
        await check_admin(router)

        actor = router.system.actors["prefill_decode-0"]
        actor.decode_gate.clear()
        actor.requests.clear()
        asking = [asyncio.create_task(ask(router)) for _ in range(40)]
        await until(lambda: len(actor.requests) == 40)
        open_requests = requests_by_process(router)
        victim = router.first.process_ids[0]
        os.kill(victim, signal.SIGKILL)
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result()[0] for task in done} == {"UNAVAILABLE"}
        actor.decode_gate.set()
        statuses = Counter(answer[0] for answer in await asyncio.gather(*asking))
        assert statuses["UNAVAILABLE"] in open_requests.values()
        assert statuses["OK"] == 40 - statuses["UNAVAILABLE"]

        await until(lambda: victim not in router.first.process_ids)
        again = await asyncio.gather(*(ask(router) for _ in range(20)))
        assert again == [("OK", "", True)] * 20


async def check_admin(router: Router) -> None:
    """Whichever process is asked, the first one answers."""
    for _ in range(6):
        async with router.channel() as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            topology = await stub.GetTopology(admin_pb2.GetTopologyRequest(), timeout=20)
            assert topology.model == "tiny"


async def test_the_others_end_with_the_first_however_it_dies() -> None:
    script = Path(__file__).with_name("first_router.py")
    parent = await asyncio.create_subprocess_exec(sys.executable, str(script), stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    process_ids = [int(number) for number in (await parent.stdout.readline()).split()]
    assert len(process_ids) == 2 and all(map(is_running, process_ids))
    parent.kill()
    await parent.wait()
    await until(lambda: not any(map(is_running, process_ids)))


def test_a_member_arrives_as_it_left() -> None:
    member = replace(
        make_member("decode-1", StageName.DECODE, ready=False), num_kv_tokens=4_711, device_id="GPU-1", host_id="h"
    )
    default = Member("", StageName.ENCODER, "", "", (), "", 0, multimodal_disaggregated=False)
    told = [field.name for field in fields(Member) if getattr(member, field.name) == getattr(default, field.name)]
    assert told == [], "give every field a value, so that one that is not carried is noticed"
    assert Member.from_info(info_of(member)) == member


def test_limits_are_divided() -> None:
    limits = {"max_pending_requests": 100, "max_pending_bytes": 3_000_000}
    config = DeploymentConfig.from_sources(overrides={"limits": limits, "router": {"processes": 3}}, environment={})
    share = share_of(config).limits
    assert (share.max_pending_requests, share.max_pending_bytes) == (33, 1_000_000)


@pytest.mark.parametrize("label", ["", '{model_name="tiny"}'])
def test_pages_are_added_value_by_value(label: str) -> None:
    page = f"# HELP a_total Help.\n# TYPE a_total counter\na_total{label} {{}}\n# TYPE b gauge\nb{label} {{}}\n"
    text = add_pages([page.replace("{}", "2"), page.replace("{}", "3")]).decode()
    assert f"a_total{label} 5.0" in text and f"b{label} 5.0" in text and "# TYPE a_total counter" in text
