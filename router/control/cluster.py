"""Cluster: the Ray cluster that the actors run in; started here, or joined."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from router.control.actor_options import logical_cpus, needed_gpus
from router.control.cluster_probe import named_address, probe_cluster
from router.control.detached.controller_handle import ControllerHandle
from router.control.orphan_guard import OrphanGuard, end_local_cluster
from router.control.ray_launcher import RayLauncher
from triptych.config import ControlSection, DeploymentConfig
from triptych.errors import ConfigurationError
from triptych.rpc.channels import ChannelPool
from triptych.transport.shared_memory import sweep_dead_slabs

logger = logging.getLogger(__name__)

# Tensors never go through Ray's object store; it carries the control plane's few bytes.
OBJECT_STORE_BYTES = 128 * 1024 * 1024
LOOPBACK = "127.0.0.1"
# A Unix socket's path has at most 107 bytes, and Ray adds some 65 to its folder.
LONGEST_FOLDER = 40


class Cluster:
    """What `close` undoes: a local cluster is shut down, one that was joined or already there is left as it was."""

    def __init__(
        self, is_local: bool, guard: OrphanGuard | None, description: str, was_connected: bool = False
    ) -> None:
        self.is_local = is_local
        self.description = description
        self._guard = guard
        self._was_connected = was_connected
        self._is_closed = False

    @classmethod
    def open(cls, config: DeploymentConfig, *, show_logs: bool = False) -> Cluster:
        """Connects this process; `show_logs` prints what actors print. Blocks for seconds.

        Raises ConfigurationError when the address does not answer, or the machine lacks the GPUs asked for.
        """
        if ray.is_initialized():
            return cls(False, None, "the Ray cluster that this process is connected to", was_connected=True)
        if config.control.address:
            return cls._join(config.control, show_logs)
        return cls._start(config, show_logs)

    def launcher(self, config: DeploymentConfig, channels: ChannelPool) -> RayLauncher:
        """Makes actors in this cluster. In a local one they listen on the loopback address only."""
        return RayLauncher(config, channels, host=LOOPBACK if self.is_local else "")

    def controller(self, config: DeploymentConfig) -> ControllerHandle:
        """Finds or makes the controller that lives on when this process ends."""
        return ControllerHandle(config, host=LOOPBACK if self.is_local else "")

    def close(self) -> None:
        """Disconnects; a local cluster's processes end. Idempotent."""
        if self._is_closed or self._was_connected:
            return
        self._is_closed = True
        ray.shutdown()
        if self._guard is not None:
            self._guard.release()
        if self.is_local:
            # Actors that were ended by force could not remove theirs.
            sweep_dead_slabs()

    def end_at_once(self) -> None:
        """For a process that is about to exit: kills a local cluster and removes the shared memory of its actors."""
        if self.is_local:
            end_local_cluster()
            sweep_dead_slabs()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def _start(cls, config: DeploymentConfig, show_logs: bool) -> Cluster:
        try:
            with _environment_for_local_start():
                _connect(
                    show_logs,
                    address="local",
                    namespace=config.control.namespace,
                    num_cpus=logical_cpus(config),
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=temporary_folder(tempfile.gettempdir()),
                    # The actors' environments differ from the plain one: a worker started ahead is never used.
                    _system_config={"prestart_worker_first_driver": False},
                )
        except KeyboardInterrupt:
            end_local_cluster()
            raise
        cluster = cls(True, OrphanGuard.start(), "a local Ray cluster")
        available = ray.cluster_resources().get("GPU", 0.0)
        if needed_gpus(config) > available:
            cluster.close()
            raise ConfigurationError(
                f"the actors ask for {needed_gpus(config):g} GPUs together, this machine has {available:g}; "
                "lower stages.*.num_gpus or stages.*.replicas, or join a larger cluster with control.address",
                field="stages",
            )
        return cluster

    @classmethod
    def _join(cls, control: ControlSection, show_logs: bool) -> Cluster:
        address = named_address(control.address)
        probe_cluster(address)
        try:
            _connect(show_logs, address=address, namespace=control.namespace)
        except Exception as error:
            # Ray tells "no cluster here", "wrong version" and "wrong token" by many classes; the first line says which.
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigurationError(
                f"control.address={address!r}: can't join a Ray cluster there: {reason}",
                field="control.address",
            ) from error
        return cls(False, None, f"the Ray cluster at {ray.get_runtime_context().gcs_address}")


def temporary_folder(system_folder: str) -> str:
    """Where Ray puts its sockets: beside other temporary files unless that path is too long for a Unix socket."""
    folder = Path(system_folder) / "ray"
    return str(folder) if len(str(folder)) <= LONGEST_FOLDER else "/tmp/ray"


def _connect(show_logs: bool, **arguments: Any) -> None:
    ray.init(
        log_to_driver=show_logs,
        logging_level=logging.WARNING if show_logs else logging.ERROR,
        configure_logging=True,
        **arguments,
    )


@contextmanager
def _environment_for_local_start() -> Iterator[None]:
    """A stray RAY_ADDRESS, or a note of a usage question, must not change what a local start does."""
    changes = {"RAY_ADDRESS": None, "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0")}
    before = {name: os.environ.get(name) for name in changes}
    _set_environment(changes)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
