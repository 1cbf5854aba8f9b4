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

bench_app = typer.Typer(help="Load on a running system, and what it made of it.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

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
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="gRPC; 0: any free port.")] = None,
    http_port: Annotated[
        int | None, typer.Option(min=-1, max=65_535, help="OpenAI API; 0: any free port, -1: none.")
    ] = None,
    router_processes: Annotated[
        int | None, typer.Option(min=1, max=64, help="Router processes behind the same ports.")
    ] = None,
    actor_logs: Annotated[bool, typer.Option("--actor-logs", help="Print what the actors log.")] = False,
) -> None:
    """Start the system, and answer requests until Ctrl-C."""
    from router.cli.overrides import deployment_config
    from router.cli.serve import run_serve

    deployment = deployment_config(
        config,
        model,
        mode,
        encoders,
        prefills,
        decodes,
        prefill_decodes,
        address=address,
        host=host,
        port=port,
        http_port=http_port,
        router_processes=router_processes,
    )
    raise typer.Exit(run_serve(deployment, show_logs=actor_logs))


@app.command()
def down(
    config: Config = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster: auto, or host:port.")] = None,
) -> None:
    """End a deployment whose controller lives on without a router (control.detached), with all its actors."""
    from router.cli.down import run_down
    from router.cli.overrides import deployment_config

    raise typer.Exit(run_down(deployment_config(config, address=address)))


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


@app.command("build-engine")
def build_engine(
    config: Config = None,
    model: Model = None,
    compute_capability: Annotated[
        str, typer.Option(help="GPU to build for, such as 8.9, where the library needs none here; else this one.")
    ] = "",
) -> None:
    """Build the TensorRT engine of the vision tower before encoders start; see docs/tensorrt.md."""
    from router.cli.build_engine import run_build_engine
    from router.cli.overrides import deployment_config

    raise typer.Exit(run_build_engine(deployment_config(config, model), compute_capability))


@app.command()
def topology(endpoint: Endpoint = DEFAULT_ENDPOINT) -> None:
    """Show a running system's stages and actors."""
    from router.cli.admin import run_topology
    from router.cli.connection import connected

    with connected(endpoint, ADMIN_TIMEOUT_S) as client:
        raise typer.Exit(run_topology(client))


@app.command()
def top(
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame, for scripts.")] = False,
) -> None:
    """Watch the stages work: rates, queues, KV pages, caches, lanes and latencies, live."""
    from router.cli.connection import connected
    from router.cli.top.live import run_top

    with connected(endpoint, ADMIN_TIMEOUT_S) as client:
        raise typer.Exit(run_top(client, interval, once=once))


@app.command()
def scale(
    wishes: Annotated[
        list[str],
        typer.Argument(metavar="STAGE=N...", help="Such as: encoder=3 decode=2, or prefill:decode=1 to move one"),
    ],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when the actors are there.")] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 300.0,
) -> None:
    """Set how many actors stages have, while the system runs."""
    from router.cli.admin import run_scale
    from router.cli.connection import connected

    with connected(endpoint, ADMIN_TIMEOUT_S) as client:
        raise typer.Exit(run_scale(client, wishes, wait=wait, timeout_s=timeout))


@bench_app.command("serve")
def bench_serve(
    backend: Annotated[str, typer.Option(help="grpc | openai-chat")] = "grpc",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    base_url: Annotated[str, typer.Option(help="Of the OpenAI API.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option("--model", help="Name of the served model, for the OpenAI API.")] = "tiny",
    tokenizer: Annotated[str, typer.Option(help="Folder with the model's tokenizer.json; 'tiny'.")] = "tiny",
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests.")] = 100,
    request_rate: Annotated[float, typer.Option(help="Requests a second; inf: all at once.")] = float("inf"),
    burstiness: Annotated[float, typer.Option(help="Shape of the gamma distributed gaps; 1 is Poisson.")] = 1.0,
    max_concurrency: Annotated[int, typer.Option(min=0, help="0: an open loop.")] = 0,
    input_len: Annotated[int, typer.Option(min=1, help="Text tokens of a prompt.")] = 64,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    range_ratio: Annotated[float, typer.Option(min=0.0, max=1.0, help="Lengths vary by that part.")] = 0.0,
    num_images: Annotated[int, typer.Option(min=0, help="Pictures of a request, all different.")] = 0,
    image_size: Annotated[str, typer.Option(help="WIDTHxHEIGHT, several by comma.")] = "1280x720",
    ignore_eos: Annotated[bool, typer.Option(help="Answers have the length that was asked for.")] = True,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    goodput: Annotated[
        list[str] | None, typer.Option(help="NAME:MILLISECONDS with ttft, tpot or e2el; repeatable.")
    ] = None,
    num_warmups: Annotated[int, typer.Option(min=0, help="Requests before the clock starts.")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one answer.")] = 600.0,
    token: Annotated[str, typer.Option(envvar="TRIPTYCH_TOKEN", help="Bearer token.")] = "",
    trace: Annotated[
        Path | None, typer.Option(help="JSONL: timestamp, input_length, output_length, num_images.")
    ] = None,
    trace_speed: Annotated[float, typer.Option(min=0.001, help="2: twice as fast.")] = 1.0,
    save_result: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
    save_detailed: Annotated[bool, typer.Option("--save-detailed", help="With every request's times.")] = False,
    plot: Annotated[Path | None, typer.Option(help="SVG, PNG or PDF file.")] = None,
) -> None:
    """Send load, and say TTFT, TPOT, ITL, E2E latency, throughput and goodput."""
    from router.cli.bench import BenchOptions, parse_sizes, parse_slo, run_bench
    from triptych.bench.backends import Target
    from triptych.bench.workload import WorkloadShape

    options = BenchOptions(
        backend=backend,
        target=Target(endpoint, base_url, model, timeout, ignore_eos, temperature, token),
        tokenizer=tokenizer,
        shape=WorkloadShape(input_len, output_len, num_images, parse_sizes(image_size), range_ratio),
        num_requests=num_prompts,
        rate=request_rate,
        burstiness=burstiness,
        max_concurrency=max_concurrency,
        num_warm_up=num_warmups,
        seed=seed,
        slo_ms=parse_slo(goodput or []),
        trace=trace,
        trace_speed=trace_speed,
        result=save_result,
        plot=plot,
        with_samples=save_detailed,
    )
    raise typer.Exit(run_bench(options))


tokens = typer.Typer(help="Tokens that clients show: see docs/security.md.", no_args_is_help=True)
app.add_typer(tokens, name="token")


@tokens.callback()
def token_options() -> None:
    """Tokens that clients show: see docs/security.md."""


@tokens.command("new")
def token_new(
    name: Annotated[str, typer.Argument(help="Whose token it is; stands in limits, logs and fair shares.")],
    admin: Annotated[bool, typer.Option("--admin", help="May ask for the topology and scale.")] = False,
    max_in_flight: Annotated[int, typer.Option(min=0, help="Requests at once; 0: no limit of its own.")] = 0,
    requests_per_s: Annotated[float, typer.Option(min=0.0, help="0: no limit of its own.")] = 0.0,
    file: Annotated[Path | None, typer.Option(help="Add the line to this file (security.tokens_file).")] = None,
) -> None:
    """Make a token: print it once, and the line with its hash."""
    from router.cli.token import run_token_new

    raise typer.Exit(
        run_token_new(name, is_admin=admin, max_in_flight=max_in_flight, requests_per_s=requests_per_s, file=file)
    )
