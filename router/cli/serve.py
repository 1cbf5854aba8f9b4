"""`triptych serve`."""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType

from rich.console import Console

from router import event_loop
from router.cli.progress import StartProgress
from router.control.cluster import Cluster
from router.control.listen_address import check_listen_address
from router.server import EXIT_INTERRUPTED, serve_until_signal
from triptych.config import DeploymentConfig
from triptych.models_folder import resolve_model_folder
from triptych.telemetry.logs import set_up_logging


def run_serve(config: DeploymentConfig, *, show_logs: bool) -> int:
    """Serves until a signal comes; returns the exit status."""
    resolve_model_folder(config.model.path)  # Before Ray starts: a wrong path is told at once.
    check_listen_address(config.router.host, config.router.port)
    if config.router.http_port > 0:
        check_listen_address(config.router.host, config.router.http_port, "http_port")
    console = Console(highlight=False, soft_wrap=True)
    set_up_logging(config.telemetry, logging.INFO if show_logs else None)
    try:
        with StartProgress(console) as progress:
            progress.say(
                f"joining the Ray cluster at {config.control.address}" if config.control.address else "starting Ray"
            )
            with Cluster.open(config, show_logs=show_logs) as cluster:
                try:
                    event_loop.run(_serve(config, cluster, progress, console))
                finally:
                    _end_at_once_on_signals(cluster)
    except KeyboardInterrupt:
        # While Ray starts: nothing of ours runs yet.
        console.print("stopped")
        return EXIT_INTERRUPTED
    console.print("stopped")
    return 0


async def _serve(config: DeploymentConfig, cluster: Cluster, progress: StartProgress, console: Console) -> None:
    def on_ready(endpoint: str, http_endpoint: str) -> None:
        progress.stop()
        console.print(f"Triptych serves {config.model.path} ({config.mode}) at [bold]{endpoint}[/bold]")
        console.print(f'  triptych chat --endpoint {endpoint} --image picture.png "What is in the picture?"')
        if http_endpoint:
            console.print(f"OpenAI API: [bold]{http_endpoint}/v1[/bold]")
        if not config.security.tokens_file:
            console.print("Anybody who reaches these ports may ask: security.tokens_file is not set.")
        console.print("Ctrl-C stops it, letting requests finish; a second Ctrl-C at once.")
        if config.control.detached and not cluster.is_local:
            console.print("Stages and their controller stay then; `triptych down` ends them (control.detached).")

    def on_stopping() -> None:
        progress.stop()
        console.print("stopping: running requests may finish")

    await serve_until_signal(config, cluster, progress, on_ready, on_stopping)


def _end_at_once_on_signals(cluster: Cluster) -> None:
    """Ray's own shutdown takes a second or two: whoever is in a hurry then must not leave half of it behind."""

    def end(number: int, frame: FrameType | None) -> None:
        cluster.end_at_once()
        os._exit(EXIT_INTERRUPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
