"""What test_ray_nodes.py runs, each in a process of its own: a Ray cluster of several nodes with GPUs that are none.

`python several_nodes.py node_loss`: the node that has the controller goes while requests run.
`python several_nodes.py autoscaler`: actors that have no place bring nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster as RayCluster
from steady_load import SteadyLoad, until
from test_no_process_left import descendants
from test_ray_detached_controller import named, ready_ids, stages_of

from router.control.actor_name import CONTROLLER
from router.control.cluster import Cluster
from router.control.cluster_probe import check_address
from router.control.membership import StageName
from router.server import RouterServer
from triptych.client import AsyncClient
from triptych.config import BUILT_IN_MODEL, DeploymentConfig
from triptych.errors import ConfigurationError

NAMESPACE = "nodes"
# Ray takes 15 s to call a node lost if it is not told otherwise.
QUICK = {"health_check_period_ms": 300, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
# By its module: by its name Ray looks for a file that its package lacks.
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)
NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 80 * 2**20}
STORE = 80 * 2**20


def make_config(stages: dict[str, Any], **control: Any) -> DeploymentConfig:
    values = {
        "model": {"path": BUILT_IN_MODEL},
        "router": {"port": 0, "http_port": -1, "max_attempts": 12},
        "stages": {name: {"num_cpus": 0.1, **stage} for name, stage in stages.items()},
        "control": {"namespace": NAMESPACE, "detached": True, "reconcile_interval_s": 0.1, **control},
    }
    return DeploymentConfig.from_sources(overrides=values, environment={})


@contextlib.contextmanager
def nodes(count: int) -> Iterator[RayCluster]:
    """A head that takes no actors, and `count` nodes."""
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "_system_config": QUICK}
    cluster = RayCluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(count):
            cluster.add_node(**NODE)
        ray.init(cluster.address, namespace=NAMESPACE, logging_level="ERROR", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def obstacle(server: RouterServer, stage: StageName) -> str:
    return next(status.obstacle for status in server.controller.topology() if status.stage == stage.to_proto())


async def node_loss() -> None:
    """Two nodes with a decode actor each; the rest is wherever Ray put it."""
    with nodes(2) as cluster:
        config = make_config({"encoder": {}, "prefill": {}, "decode": {"replicas": 2, "num_gpus": 1}})
        ours = Cluster.open(config)
        server = RouterServer(config, ours)
        try:
            async with AsyncClient(await server.start(), timeout_s=90.0) as client, SteadyLoad(client) as load:
                await load.answers_more(5)
                controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
                node_id = await controller.__ray_call__.remote(_node_id)
                before = ready_ids(server, StageName.DECODE)
                (lost,) = [node for node in cluster.worker_nodes if node.node_id == node_id]
                cluster.remove_node(lost, allow_graceful=False)
                print("the node with the controller is gone", flush=True)
                await until(lambda: "GPU" in obstacle(server, StageName.DECODE))
                print("obstacle:", obstacle(server, StageName.DECODE), flush=True)
                await load.answers_more(5)
                cluster.add_node(**NODE)
                await until(lambda: len(ready_ids(server, StageName.DECODE)) == 2)
                assert len(ready_ids(server, StageName.DECODE) & before) == 1
                await load.answers_more(5)
                assert stages_of(named(NAMESPACE)) == ["decode", "decode", "encoder", "prefill"]
            load.assert_none_lost()
            print(f"{load.num_answers} answers, {max(load.attempts)} attempts at most", flush=True)
        finally:
            await server.stop()
            await ours.controller(config).end()
        await until(lambda: not named(NAMESPACE))


@contextlib.contextmanager
def autoscaled(folder: Path) -> Iterator[str]:
    """A head without GPUs and Ray's autoscaler, whose nodes with one GPU are processes; yields its address.

    Ray's own AutoscalingCluster does the same, but needs a file that is not in the package, and ends every other Ray
    cluster of the machine.
    """
    types: dict[str, Any] = {
        "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    provider = {"type": "external", "module": _PROVIDER, "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID}
    flags = ("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check")
    settings: dict[str, Any] = {
        "cluster_name": "fake",
        "max_workers": 2,
        "provider": {**provider, **dict.fromkeys(flags, True)},
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        "auth": {},
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.05,
        "docker": {},
        **{name: [] for name in _COMMANDS},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    port = free_port()
    # Otherwise its nodes look for a head at Ray's own port.
    settings["provider"]["gcs_address"] = f"{ray.util.get_node_ip_address()}:{port}"
    file = folder / "autoscaler.json"
    file.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--port={port}", f"--autoscaling-config={file}", f"--temp-dir={folder}", "--include-dashboard=false"]
    environment = {
        **os.environ,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        for process_id in (head.pid, *descendants(head.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        head.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def autoscaler() -> None:
    """Decode actors hold a GPU each, and the head has none: each brings a node, and its end takes it away."""
    with tempfile.TemporaryDirectory(prefix="as", ignore_cleanup_errors=True) as folder, autoscaled(Path(folder)) as at:
        await until(lambda: _answers(at))
        ray.init(at, namespace=NAMESPACE, logging_level="ERROR", log_to_driver=False)
        try:
            await _grow_and_shrink()
        finally:
            ray.shutdown()


def _answers(address: str) -> bool:
    try:
        check_address(address)
    except ConfigurationError:
        return False
    return True


async def _grow_and_shrink() -> None:
    config = make_config({"encoder": {}, "prefill": {}, "decode": {"num_gpus": 1}})
    ours = Cluster.open(config)
    server = RouterServer(config, ours)
    try:
        async with AsyncClient(await server.start(), timeout_s=90.0) as client, SteadyLoad(client) as load:
            counts = [num_gpus()]
            await client.scale(StageName.DECODE, 2)
            counts.append(num_gpus())
            await load.answers_more(5)
            await client.scale(StageName.DECODE, 1)
            await until(lambda: num_gpus() == 1)
            counts.append(num_gpus())
            await load.answers_more(5)
        load.assert_none_lost()
        print("nodes with a GPU:", ", then ".join(str(count) for count in counts), flush=True)
    finally:
        await server.stop()
        await ours.controller(config).end()


def num_gpus() -> int:
    return round(sum(node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]))


def _node_id(actor: object) -> str:
    return str(ray.get_runtime_context().get_node_id())


if __name__ == "__main__":
    asyncio.run({"node_loss": node_loss, "autoscaler": autoscaler}[sys.argv[1]]())
