"""`triptych serve`."""

from __future__ import annotations

import asyncio
import logging

from rich.console import Console

from router.cli.progress import StartProgress
from router.control.cluster import Cluster
from router.control.listen_address import check_listen_address
from router.server import EXIT_INTERRUPTED, serve_until_signal
from triptych.config import DeploymentConfig
from triptych.models_folder import resolve_model_folder


def run_serve(config: DeploymentConfig, *, show_logs: bool) -> int:
    """Serves until a signal comes; returns the exit status."""
    resolve_model_folder(config.model.path)  # Before Ray starts: a wrong path is told at once.
    check_listen_address(config.router.host, config.router.port)
    console = Console(highlight=False, soft_wrap=True)
    log_to_stderr(logging.INFO if show_logs else logging.WARNING)
    cluster: Cluster | None = None
    try:
        with StartProgress(console) as progress:
            progress.say(
                f"joining the Ray cluster at {config.control.address}" if config.control.address else "starting Ray"
            )
            with Cluster.open(config, show_logs=show_logs) as cluster:
                asyncio.run(_serve(config, cluster, progress, console))
    except KeyboardInterrupt:
        # While Ray starts, or a second time while it stops.
        if cluster is not None:
            cluster.end_at_once()
        console.print("stopped")
        return EXIT_INTERRUPTED
    console.print("stopped")
    return 0


async def _serve(config: DeploymentConfig, cluster: Cluster, progress: StartProgress, console: Console) -> None:
    def on_ready(endpoint: str) -> None:
        progress.stop()
        console.print(f"Triptych serves {config.model.path} ({config.mode}) at [bold]{endpoint}[/bold]")
        console.print(f'  triptych chat --endpoint {endpoint} --image picture.png "What is in the picture?"')
        console.print("Ctrl-C stops it, letting requests finish; a second Ctrl-C at once.")

    def on_stopping() -> None:
        progress.stop()
        console.print("stopping: running requests may finish")

    await serve_until_signal(config, cluster, progress, on_ready, on_stopping)


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Log lines of this process that an operator should see."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    # Of prompts that are too long the router says so itself, with the limit that counts.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
