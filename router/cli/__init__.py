"""The command `triptych`. A command imports what it needs when it runs, so that `triptych --help` answers at once."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line; an error of ours is one line on stderr and exit status 1."""
    # What gRPC's core prints about refused connections and taken ports, our errors say in a line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from router.cli.app import app

    try:
        app()
    except Exception as error:
        from triptych.errors import TriptychError

        if not isinstance(error, TriptychError):
            raise
        sys.exit(f"triptych: {error}")
