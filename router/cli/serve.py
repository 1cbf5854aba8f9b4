"""`triptych serve`."""

from __future__ import annotations

import asyncio
import logging

from rich.console import Console

from router.cli.progress import StartProgress
from router.control.cluster import Cluster
from router.server import serve_until_signal
from triptych.config import DeploymentConfig
from triptych.models_folder import resolve_model_folder


def run_serve(config: DeploymentConfig, *, show_logs: bool) -> int:
    """Serves until a signal comes; returns the exit status."""
    resolve_model_folder(config.model.path)  # Before Ray starts: a wrong path is told at once.
    console = Console(highlight=False, soft_wrap=True)
    log_to_stderr(logging.INFO if show_logs else logging.WARNING)
    with StartProgress(console) as progress:
        progress.say(
            f"joining the Ray cluster at {config.control.address}" if config.control.address else "starting Ray"
        )
        with Cluster.open(config, show_logs=show_logs) as cluster:

            def on_ready(endpoint: str) -> None:
                progress.stop()
                console.print(f"Triptych serves {config.model.path} ({config.mode}) at [bold]{endpoint}[/bold]")
                console.print(f'  triptych chat --endpoint {endpoint} --image picture.png "What is in the picture?"')
                console.print("Ctrl-C stops it, letting requests finish; a second Ctrl-C at once.")

            def on_stopping() -> None:
                console.print("stopping: running requests may finish")

            asyncio.run(serve_until_signal(config, cluster, progress, on_ready, on_stopping))
    console.print("stopped")
    return 0


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Log lines of this process that an operator should see."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
