"""Actors that change between stages: one process with both halves of the model, and policies by name that say when
(`scaling.roles.policy`)."""

from __future__ import annotations

from router.control.roles.balance import balance
from router.control.roles.role_context import Move, RoleContext, RolePolicy, RoleState
from triptych.errors import ConfigurationError


def fixed(context: RoleContext) -> tuple[tuple[Move, ...], RoleState]:
    """Actors stay where they are."""
    return (), context.state


def role_policy(name: str) -> RolePolicy:
    """The policy of that name. Raises ConfigurationError for one that there is not."""
    policies: dict[str, RolePolicy] = {"fixed": fixed, "balance": balance}
    if name not in policies:
        raise ConfigurationError(
            f"scaling.roles.policy={name!r}: expected one of {', '.join(policies)}", field="scaling.roles.policy"
        )
    return policies[name]


__all__ = ["role_policy"]
