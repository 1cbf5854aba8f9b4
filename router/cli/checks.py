"""What `triptych doctor` looks at. Each function takes the configuration and yields findings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from triptych.config import MIB, ActorSection, DeploymentConfig
from triptych.errors import ModelError

DISTRIBUTION = "triptych"
LEAST_PYTHON = (3, 11)
SHARED_MEMORY = Path("/dev/shm")


class Level(Enum):
    GOOD = auto()
    NOTE = auto()  # Works, with something missing or slower.
    BAD = auto()  # A start fails.


@dataclass(frozen=True)
class Finding:
    """`remedy` says what to do, where there is something to do."""

    what: str
    level: Level
    found: str
    remedy: str = ""


def environment_checks(config: DeploymentConfig) -> Iterator[Finding]:
    """Python, the packages against their floors, memory of the machine, GPUs."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    is_new = sys.version_info[:2] >= LEAST_PYTHON
    yield Finding(
        "Python", Level.GOOD if is_new else Level.BAD, version, "" if is_new else "install Python 3.11 or newer"
    )
    yield from _package_checks()
    yield Finding("CPU cores", Level.GOOD, str(os.cpu_count()))
    yield from _gpu_checks(config)


def lane_checks(config: DeploymentConfig) -> Iterator[Finding]:
    """What the machine has for tensors on their way from actor to actor; the lane grpc needs nothing."""
    yield _shared_memory_check(config)
    has_gpu = _num_gpus() > 0
    yield Finding("CUDA IPC", Level.GOOD if has_gpu else Level.NOTE, "GPU present" if has_gpu else "no GPU here")
    nccl = _nccl_version()
    yield Finding("NCCL", Level.GOOD if nccl and has_gpu else Level.NOTE, nccl or "torch was built without NCCL")
    yield Finding("lane grpc", Level.GOOD, "works everywhere")


def model_checks(config: DeploymentConfig) -> Iterator[Finding]:
    """The checkpoint folder, and PyAV for video files."""
    from triptych.models_folder import resolve_model_folder

    try:
        folder = resolve_model_folder(config.model.path)
        from triptych.models.qwen2_5_vl.config import ModelConfig

        ModelConfig.from_folder(folder)
        yield Finding("model", Level.GOOD, str(folder))
    except ModelError as error:
        yield Finding("model", Level.BAD, str(error), "set model.path (--model) to a Qwen2.5-VL checkpoint folder")
    has_video = importlib.util.find_spec("av") is not None
    remedy = "" if has_video else "pip install 'triptych[video]'"
    yield Finding(
        "video files",
        Level.GOOD if has_video else Level.NOTE,
        f"PyAV {importlib.metadata.version('av')}" if has_video else "no PyAV: videos only as frames",
        remedy,
    )


def network_checks(config: DeploymentConfig) -> Iterator[Finding]:
    """The port of the router, and the folder for Ray's sockets."""
    from router.control.cluster import temporary_folder
    from router.control.cluster_probe import named_address, probe_cluster
    from router.control.listen_address import check_listen_address
    from triptych.errors import ConfigurationError

    host = config.router.host
    for name, key, port in (
        ("router port", "port", config.router.port),
        ("HTTP port", "http_port", config.router.http_port),
    ):
        if port < 0:
            continue
        try:
            check_listen_address(host, port, key)
            yield Finding(name, Level.GOOD, f"{host}:{port} is free")
        except ConfigurationError as error:
            found, _, remedy = str(error).partition("; ")
            yield Finding(name, Level.BAD, found, remedy)
    if config.control.address:
        try:
            probe_cluster(named_address(config.control.address))
            yield Finding("Ray cluster", Level.GOOD, config.control.address)
        except ConfigurationError as error:
            yield Finding("Ray cluster", Level.BAD, str(error), "start it with ray start --head")
        return
    folder = Path(temporary_folder(os.environ.get("TMPDIR", "/tmp")))
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    is_writable = os.access(nearest, os.W_OK)
    free = shutil.disk_usage(nearest).free // MIB
    is_good = is_writable and free > 200
    found = f"{folder}: {free} MiB free" if is_writable else f"{nearest} can't be written"
    yield Finding("Ray session folder", Level.GOOD if is_good else Level.BAD, found, "" if is_good else "set TMPDIR")


def _package_checks() -> Iterator[Finding]:
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(DISTRIBUTION, Level.NOTE, "not installed, runs from its folder", "pip install --editable .")
        return
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        name, floor = parse_requirement(requirement)
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, Level.BAD, "not installed", f"pip install '{requirement}'")
            continue
        is_new = version_numbers(installed) >= version_numbers(floor)
        remedy = "" if is_new else f"pip install '{requirement}'"
        yield Finding(name, Level.GOOD if is_new else Level.BAD, f"{installed} (needs {floor})", remedy)


def parse_requirement(requirement: str) -> tuple[str, str]:
    """`protobuf<8,>=6.31` -> (protobuf, 6.31); the floor is 0 where none is named."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    floor = re.search(r">=\s*([0-9.]+)", requirement)
    return name.group() if name else requirement, floor.group(1) if floor else "0"


def version_numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0): enough to compare with a floor."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers.group().split(".")) if numbers else ()


def _gpu_checks(config: DeploymentConfig) -> Iterator[Finding]:
    import torch

    wanted = sum(section.num_gpus * section.replicas for section in _sections(config))
    count = _num_gpus()
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    built = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build of torch"
    found = f"{count}: {names}" if count else f"none ({built})"
    if config.control.address and wanted:
        yield Finding("GPUs", Level.NOTE, f"{found}; the actors ask their cluster for {wanted:g}")
    elif wanted > count:
        remedy = "lower stages.*.num_gpus or replicas, or join a cluster that has them"
        yield Finding("GPUs", Level.BAD, f"{found}; the actors ask for {wanted:g}", remedy)
    elif count and not wanted:
        yield Finding("GPUs", Level.NOTE, found, "the actors take none as configured: set stages.*.num_gpus")
    else:
        yield Finding("GPUs", Level.GOOD if count else Level.NOTE, found)


def _sections(config: DeploymentConfig) -> list[ActorSection]:
    from router.control.actor_options import actor_section
    from router.control.membership import StageName

    return [actor_section(config, stage) for stage in StageName]


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _nccl_version() -> str:
    import torch.distributed

    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        return ""
    return "NCCL " + ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]


def _shared_memory_check(config: DeploymentConfig) -> Finding:
    wanted = config.transport.shared_memory_bytes
    if wanted == 0 or "shm" not in config.transport.lanes:
        return Finding("lane shm", Level.NOTE, "turned off in the configuration")
    if not SHARED_MEMORY.is_dir() or not os.access(SHARED_MEMORY, os.W_OK):
        return Finding(
            "lane shm", Level.NOTE, f"{SHARED_MEMORY} can't be written: tensors go over gRPC", "mount it writable"
        )
    # An actor's slab is sparse: it fills only as far as tensors wait at one time.
    num_producers = sum(section.replicas for section in _sections(config))
    free = shutil.disk_usage(SHARED_MEMORY).free
    found = f"{free // MIB} MiB free, up to {num_producers} x {wanted // MIB} MiB used"
    if free < wanted:
        remedy = "larger /dev/shm (docker: --shm-size), or lower transport.shared_memory_bytes"
        return Finding("lane shm", Level.NOTE, found, remedy)
    return Finding("lane shm", Level.GOOD, found)
