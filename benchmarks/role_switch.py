"""How long actors take to change their stage, idle and under load, with every answer counted.

`python -m benchmarks.role_switch --model FOLDER --out FILE [--rounds 5]` brings up two encoders and one prefill_decode
actor, all with both halves of the model, in one process on one device, and has one of them go round: encoder to
prefill_decode, prefill, decode, prefill_decode, and back to encoder. FOLDER is any checkpoint, such as one that
`benchmarks.random_checkpoint` writes. Nothing is cached between requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from benchmarks.own_actors import OwnLauncher
from router.control.membership import StageName
from router.control.roles.turning_actor import TurningActor
from router.server import RouterServer
from triptych.client import AsyncClient
from triptych.config import DeploymentConfig
from triptych.errors import TriptychError
from triptych.rpc.channels import ChannelPool
from triptych.switch import SWITCH

ENCODER, PREFILL, DECODE, BOTH = StageName
MOVES = ((ENCODER, BOTH), (BOTH, PREFILL), (PREFILL, DECODE), (DECODE, BOTH), (BOTH, ENCODER))
_NUM_TOKENS = 32
_KV_BYTES = {"cuda": 4 << 30, "cpu": 32 << 20}


class OwnCluster:
    """The router's cluster: this process."""

    def __init__(self) -> None:
        self.actors: OwnLauncher | None = None

    def launcher(self, config: DeploymentConfig, channels: ChannelPool) -> OwnLauncher:
        self.actors = OwnLauncher(config)
        return self.actors

    def end_at_once(self) -> None:
        return


@dataclass
class Load:
    """Workers that ask one question after the other, each with a picture of its own."""

    client: AsyncClient
    num_answers: int = 0
    errors: list[str] = field(default_factory=list)
    _number: int = 0

    async def run(self) -> None:
        while True:
            await self.ask()

    async def ask(self) -> tuple[int, ...]:
        self._number += 1
        color = (self._number * 37 % 256, self._number // 256 % 256, 90)
        try:
            answer = await self.client.ask(
                f"{self._number}: " + "what is it? " * 20,
                images=[Image.new("RGB", (448, 448), color)],
                max_tokens=_NUM_TOKENS,
                ignore_eos=True,
            )
        except TriptychError as error:
            self.errors.append(str(error)[:200])
            return ()
        if len(answer.token_ids) != _NUM_TOKENS:
            self.errors.append(f"{len(answer.token_ids)} tokens")
        self.num_answers += 1
        return answer.token_ids


@dataclass
class Samples:
    """Milliseconds by row."""

    rows: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, seconds: float) -> None:
        self.rows.setdefault(name, []).append(round(1e3 * seconds, 3))


def configuration(model: str) -> DeploymentConfig:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    language = {"kv_cache_bytes": _KV_BYTES[device], "max_context_tokens": 4_096, "enable_prefix_cache": False}
    if device == "cuda":
        language["max_step_tokens"] = language["prefill_chunk_tokens"] = 8_192
    return DeploymentConfig.from_sources(
        overrides={
            "model": {"path": model},
            "stages": {
                "encoder": {"replicas": 2, "activation_bytes": 2 << 30, "cache_bytes": 0, "host_cache_bytes": 0},
                "prefill": {"replicas": 0, **language},
                "decode": {"replicas": 0, **language},
                "prefill_decode": {"replicas": 1, **language},
            },
            "router": {"port": 0, "http_port": -1},
            # The lanes of a GPU are for actors in processes of their own.
            "transport": {"lanes": ("shm", "grpc")},
            "control": {"keep_both_halves": True},
        },
        environment={},
    )


@asynccontextmanager
async def system(model: str) -> AsyncIterator[tuple[RouterServer, OwnLauncher, AsyncClient]]:
    """The whole of it, in this process."""
    os.environ[SWITCH] = "1"
    cluster = OwnCluster()
    server = RouterServer(configuration(model), cluster)
    try:
        endpoint = await server.start()
        assert cluster.actors is not None
        async with AsyncClient(endpoint, timeout_s=60) as client:
            yield server, cluster.actors, client
    finally:
        await server.stop()


async def go_round(server: RouterServer, actors: OwnLauncher, samples: Samples, prefix: str) -> None:
    """One actor through all stages. Noted is how long each move took, and the parts of a turn."""
    for from_stage, to_stage in MOVES:
        before = {id(actor): actor.last_turn for actor in _turning(actors)}
        begun_s = time.monotonic()
        await server.controller.move(from_stage, to_stage, is_automatic=True)
        name = f"{prefix}.{from_stage}_to_{to_stage}"
        samples.note(f"{name}.move_ms", time.monotonic() - begun_s)
        for actor in _turning(actors):
            if actor.last_turn is not None and actor.last_turn is not before[id(actor)]:
                for part, seconds in asdict(actor.last_turn).items():
                    samples.note(f"{name}.{part.removesuffix('_s')}_ms", seconds)


async def measure(model: str, num_rounds: int, num_workers: int) -> tuple[Samples, Load]:
    async with system(model) as (server, actors, client):
        return await measure_running(server, actors, client, num_rounds, num_workers)


async def measure_running(
    server: RouterServer, actors: OwnLauncher, client: AsyncClient, num_rounds: int, num_workers: int
) -> tuple[Samples, Load]:
    samples, load = Samples(), Load(client)
    await asyncio.gather(*(load.ask() for _ in range(4)))
    for _ in range(num_rounds):
        await go_round(server, actors, samples, "idle")
    workers = [asyncio.create_task(load.run()) for _ in range(num_workers)]
    await asyncio.sleep(1.0)
    for _ in range(num_rounds):
        await go_round(server, actors, samples, "loaded")
        await asyncio.sleep(0.5)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    await load.ask()
    return samples, load


def _turning(actors: OwnLauncher) -> list[TurningActor]:
    return [process.actor for process in actors.processes if isinstance(process.actor, TurningActor)]


def record(samples: Samples, load: Load) -> dict[str, object]:
    rows = {
        name: {"median": median(values), "max": max(values), "samples": values} for name, values in samples.rows.items()
    }
    return {
        "benchmark": "role_switch",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": "python -m benchmarks.role_switch --model FOLDER --out FILE",
        "versions": {name: version(name) for name in ("torch", "grpcio")},
        "answers": load.num_answers,
        "errors": load.errors,
        "rows": {f"role_switch.{name}": row for name, row in rows.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=16)
    arguments = parser.parse_args()
    samples, load = asyncio.run(measure(arguments.model, arguments.rounds, arguments.workers))
    for name, values in samples.rows.items():
        print(f"{name:50} median {median(values):9.1f}   max {max(values):9.1f}")
    print(f"{load.num_answers} answers, {len(load.errors)} errors {load.errors[:3]}")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record(samples, load), indent=1) + "\n", encoding="utf-8")
    return 1 if load.errors else 0


if __name__ == "__main__":
    sys.exit(main())
