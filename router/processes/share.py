"""What one of several router processes may use of the limits that are set for the router as a whole."""

from __future__ import annotations

from triptych.config import DeploymentConfig


def share_of(config: DeploymentConfig) -> DeploymentConfig:
    """The configuration of each process: limits.max_pending_requests and max_pending_bytes are divided among all."""
    num_processes, limits = config.router.processes, config.limits
    shared = limits.model_copy(
        update={
            "max_pending_requests": max(1, limits.max_pending_requests // num_processes),
            "max_pending_bytes": max(1, limits.max_pending_bytes // num_processes),
        }
    )
    return config.model_copy(update={"limits": shared})
