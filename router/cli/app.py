"""Commands and their flags. What a command does stands in the module of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="triptych",
    help="Vision-language serving in three stages that scale apart: encode, prefill, decode.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEFAULT_ENDPOINT = "127.0.0.1:50051"
ADMIN_TIMEOUT_S = 10.0

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; see docs and examples/config.")]
Model = Annotated[str | None, typer.Option("--model", help="Checkpoint folder; 'tiny' is the model in the package.")]
ModeFlag = Annotated[str | None, typer.Option("--mode", help="disaggregated | colocated")]
Encoders = Annotated[int | None, typer.Option("--encoders", min=0, help="Encoder actors.")]
Prefills = Annotated[int | None, typer.Option("--prefills", min=0, help="Prefill actors.")]
Decodes = Annotated[int | None, typer.Option("--decodes", min=0, help="Decode actors.")]
PrefillDecodes = Annotated[
    int | None,
    typer.Option("--prefill-decodes", min=0, help="Actors that do both. Alone: instead of prefill and decode actors."),
]
Endpoint = Annotated[str, typer.Option("--endpoint", "-e", help="host:port of a router.")]


def _print_version(is_wanted: bool) -> None:
    if not is_wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        typer.echo(f"triptych {version('triptych')}")
    except PackageNotFoundError:
        typer.echo("triptych, not installed: runs from its folder")
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Vision-language serving in three stages that scale apart: encode, prefill, decode."""


@app.command()
def serve(
    config: Config = None,
    model: Model = None,
    mode: ModeFlag = None,
    encoders: Encoders = None,
    prefills: Prefills = None,
    decodes: Decodes = None,
    prefill_decodes: PrefillDecodes = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join: auto, or host:port. Nothing: a local one.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address that clients connect to.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="0: any free port.")] = None,
    actor_logs: Annotated[bool, typer.Option("--actor-logs", help="Print what the actors log.")] = False,
) -> None:
    """Start the system, and answer requests until Ctrl-C."""
    from router.cli.overrides import deployment_config
    from router.cli.serve import run_serve

    deployment = deployment_config(
        config, model, mode, encoders, prefills, decodes, prefill_decodes, address=address, host=host, port=port
    )
    raise typer.Exit(run_serve(deployment, show_logs=actor_logs))


@app.command()
def chat(
    question: Annotated[str | None, typer.Argument(help="Without one: a conversation of many turns.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="Image file; repeatable.")] = None,
    video: Annotated[list[Path] | None, typer.Option("--video", "-v", help="Video file; repeatable.")] = None,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    top_k: Annotated[int | None, typer.Option(min=0)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text before which the answer ends; repeatable.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one answer.")] = 120.0,
    timings: Annotated[bool, typer.Option("--timings", help="Where the time went, and who worked.")] = False,
) -> None:
    """Ask a running system about pictures and videos; the answer streams."""
    from router.cli.chat import run_chat, sampling_options
    from router.cli.connection import connected

    sampling = sampling_options(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, stop=stop
    )
    with connected(endpoint, timeout) as client:
        raise typer.Exit(run_chat(client, question, image or [], video or [], system, sampling, show_timings=timings))


@app.command()
def demo(
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same pictures and questions.")] = None,
    model: Model = None,
) -> None:
    """Start one actor of each stage here, and watch fresh pictures and a video being answered."""
    from router.cli.demo import run_demo

    raise typer.Exit(run_demo(seed, model))


@app.command()
def doctor(config: Config = None, model: Model = None) -> None:
    """Say what this machine has, what is wrong, and how to mend it."""
    from router.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(config, model))


@app.command()
def topology(endpoint: Endpoint = DEFAULT_ENDPOINT) -> None:
    """Show a running system's stages and actors."""
    from router.cli.admin import run_topology
    from router.cli.connection import connected

    with connected(endpoint, ADMIN_TIMEOUT_S) as client:
        raise typer.Exit(run_topology(client))


@app.command()
def scale(
    wishes: Annotated[list[str], typer.Argument(metavar="STAGE=N...", help="Such as: encoder=3 decode=2")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when the actors are there.")] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 300.0,
) -> None:
    """Set how many actors stages have, while the system runs."""
    from router.cli.admin import run_scale
    from router.cli.connection import connected

    with connected(endpoint, ADMIN_TIMEOUT_S) as client:
        raise typer.Exit(run_scale(client, wishes, wait=wait, timeout_s=timeout))
