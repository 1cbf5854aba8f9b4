"""What test_ray_nodes.py runs, each in a process of its own: a Ray cluster of several nodes with GPUs that are none.

`python several_nodes.py node_loss`: the node that has the controller goes while requests run.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import ray
from ray.cluster_utils import Cluster as RayCluster
from steady_load import SteadyLoad, until
from test_ray_detached_controller import named, ready_ids, stages_of

from router.control.actor_name import CONTROLLER
from router.control.cluster import Cluster
from router.control.membership import StageName
from router.server import RouterServer
from triptych.client import AsyncClient
from triptych.config import BUILT_IN_MODEL, DeploymentConfig

NAMESPACE = "nodes"
# Ray takes 15 s to call a node lost if it is not told otherwise.
QUICK = {"health_check_period_ms": 300, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
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


def _node_id(actor: object) -> str:
    return str(ray.get_runtime_context().get_node_id())


if __name__ == "__main__":
    asyncio.run({"node_loss": node_loss}[sys.argv[1]]())
