"""How many actors each stage should have: policies by name (`scaling.policy`), and what feeds them."""

from __future__ import annotations

from router.control.scaling.context import ScalingPolicy
from router.control.scaling.fixed import fixed
from router.control.scaling.load_and_slo import load_and_slo
from router.control.scaling.queue_only import queue_only
from triptych.errors import ConfigurationError


def scaling_policy(name: str) -> ScalingPolicy:
    """The policy of that name. Raises ConfigurationError for one that there is not."""
    policies: dict[str, ScalingPolicy] = {"load_and_slo": load_and_slo, "queue_only": queue_only, "fixed": fixed}
    if name not in policies:
        raise ConfigurationError(
            f"scaling.policy={name!r}: expected one of {', '.join(policies)}", field="scaling.policy"
        )
    return policies[name]


__all__ = ["scaling_policy"]
