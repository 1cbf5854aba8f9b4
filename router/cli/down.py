"""`triptych down`."""

from __future__ import annotations

import asyncio

from router.control.cluster import Cluster
from triptych.config import DeploymentConfig
from triptych.errors import ConfigurationError


def run_down(config: DeploymentConfig) -> int:
    """Ends the deployment in `control.namespace`; returns the exit status, 1 when there is none.

    Raises ConfigurationError without a cluster to look in.
    """
    control = config.control
    if not control.address:
        raise ConfigurationError(
            "control.address is empty: a local cluster ends with its router; expected the cluster that the deployment "
            "is in (--address auto, or host:port)",
            field="control.address",
        )
    with Cluster.open(config) as cluster:
        is_ended = asyncio.run(cluster.controller(config).end())
    what = f"the deployment in Ray namespace {control.namespace!r}"
    print(f"ended {what}" if is_ended else f"{what}: there is none")
    return 0 if is_ended else 1
