"""What each kind of actor holds of a model, asked of running actors: modes disaggregated and colocated, one by one.

`python -m benchmarks.memory_share FOLDER [--out FILE]` with a checkpoint of `benchmarks.random_checkpoint`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from router.control.cluster import Cluster
from router.server import RouterServer
from triptych.client import AsyncClient
from triptych.config import DeploymentConfig
from triptych.v1 import admin_pb2, common_pb2

_MODES = ("disaggregated", "colocated")


def mode_config(mode: str, model: str) -> DeploymentConfig:
    """bfloat16 on every device: shares do not depend on it, what fits a small machine does."""
    actor = {"num_cpus": 0.1, "num_gpus": 0.4 if torch.cuda.is_available() else 0}
    language = {**actor, "replicas": 1, "num_pages": 512}
    stages: dict[str, object] = {"prefill_decode": language}
    if mode == "disaggregated":
        stages |= {"encoder": actor, "prefill": {"replicas": 0}, "decode": {"replicas": 0}}
    values = {
        "mode": mode,
        "model": {"path": model, "dtype": "bfloat16"},
        "stages": stages,
        "router": {"port": 0, "http_port": -1},
        "control": {"namespace": f"memory-{mode}"},
    }
    return DeploymentConfig.from_sources(overrides=values, environment={})


async def weights_of_actors(mode: str, model: str) -> dict[str, admin_pb2.Weights]:
    """By the stage's name."""
    config = mode_config(mode, model)
    with Cluster.open(config) as cluster:
        server = RouterServer(config, cluster)
        try:
            async with AsyncClient(await server.start()) as client:
                topology = await client.topology()
                infos = [await client.actor_info(actor.actor_id) for stage in topology.stages for actor in stage.actors]
        finally:
            await server.stop()
    return {common_pb2.Stage.Name(info.stage).removeprefix("STAGE_").lower(): info.weights for info in infos}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    disaggregated, colocated = (asyncio.run(weights_of_actors(mode, arguments.model)) for mode in _MODES)
    whole = colocated["prefill_decode"]
    shares = {
        "encoder": disaggregated["encoder"].num_bytes / whole.num_bytes,
        "language": disaggregated["prefill_decode"].num_bytes / whole.num_bytes,
    }
    print(f"{'actor':<28}{'visual':>16}{'language':>18}{'GB':>8}{'share':>9}")
    for name, weights in (
        ("colocated", whole),
        ("encoder", disaggregated["encoder"]),
        ("language, disaggregated", disaggregated["prefill_decode"]),
    ):
        counts = f"{weights.num_visual_parameters:>16,}{weights.num_language_parameters:>18,}"
        print(f"{name:<28}{counts}{weights.num_bytes / 1e9:>8.2f}{weights.num_bytes / whole.num_bytes:>9.1%}")
    if arguments.out:
        record = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "command": f"python -m benchmarks.memory_share {Path(arguments.model).name}",
            "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "versions": {"torch": torch.__version__, "ray": version("ray")},
            "rows": {f"memory.{name}_share": {"median": share * 100} for name, share in shares.items()},
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
