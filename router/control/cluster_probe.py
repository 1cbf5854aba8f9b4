"""Is there a Ray cluster at an address, and does it let us in? Asked before `ray.init`, which would try for minutes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from triptych.errors import ConfigurationError

AUTO = "auto"
CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 12.0
_AUTH_MODE = "RAY_AUTH_MODE"


def probe_cluster(address: str) -> None:
    """Raises ConfigurationError, saying why, unless a Ray cluster of our version answers at `address` and takes us."""
    check_address(address)
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        result = subprocess.run(
            command, env=_environment(address), capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise _refused(
            address,
            "no Ray cluster answers; start one with ray start --head, or leave control.address empty for a local one "
            "(an old note in /tmp/ray/ray_current_cluster goes away with ray stop)",
        ) from None
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"ray health-check ended with {result.returncode}"
        if "AuthenticationError" in reason:
            reason = f"it refuses our token; set {_AUTH_MODE}=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"
        raise _refused(address, reason)


def check_address(address: str) -> None:
    """Raises ConfigurationError for a malformed address, or where nothing listens."""
    if address == AUTO:
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        raise ConfigurationError(
            f"control.address={address!r}: expected 'auto', host:port (as printed by ray start --head), "
            "or nothing for a local cluster",
            field="control.address",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _refused(
            address,
            f"nothing answers there ({error}); start a cluster with ray start --head, or leave control.address empty "
            "for a local one",
        ) from None


def _environment(address: str) -> Mapping[str, str]:
    """As `ray.init`: a cluster found by itself gets the token of this user, one named by address only if told."""
    environment = dict(os.environ)
    if address == AUTO and (Path.home() / ".ray" / "auth_token").exists():
        environment.setdefault(_AUTH_MODE, "token")
    return environment


def _refused(address: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"control.address={address!r}: {reason}", field="control.address")
