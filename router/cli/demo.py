"""`triptych demo`: the whole system on this machine, answering questions about pictures drawn a moment ago."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from rich.console import Console
from rich.markup import escape

from router.cli.admin import running_actors, topology_lines
from router.cli.demo_cases import Case, draw_cases
from router.cli.overrides import deployment_config
from router.cli.progress import StartProgress
from router.cli.terminal_picture import half_blocks
from router.control.cluster import Cluster
from router.server import RouterServer
from triptych.client import Answer, AsyncClient
from triptych.config import DeploymentConfig
from triptych.demo.questions import Question
from triptych.models_folder import resolve_model_folder
from triptych.telemetry.logs import set_up_logging
from triptych.v1 import admin_pb2, common_pb2

PICTURE_ROWS = 8
MAX_TOKENS = 96
# The small model answers some 95 of 100 fresh questions word for word: below this share something is broken.
LEAST_SHARE_RIGHT = 0.5


@dataclass(frozen=True)
class Answered:
    """One question with what came of it."""

    case: Case
    question: str
    expected: str
    answer: Answer

    @property
    def is_right(self) -> bool:
        return self.answer.text.strip() == self.expected


def run_demo(seed: int | None, model: str | None) -> int:
    """Returns 0 when the stages did what they should and most answers were right, else 1."""
    begun = time.monotonic()
    console = Console(highlight=False, soft_wrap=True)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    config = deployment_config(None, model, "disaggregated", 1, 1, 1, 0, address="", port=0, http_port=-1)
    set_up_logging(config.telemetry)
    resolve_model_folder(config.model.path)
    console.print("Triptych on this machine: one encoder, one prefill and one decode actor on a local Ray cluster.")
    with StartProgress(console) as progress:
        progress.say("starting Ray")
        with Cluster.open(config) as cluster:
            demo = _Demo(config, cluster, console, progress, seed)
            problems = asyncio.run(demo.run())
    console.print(f"everything is stopped again; {time.monotonic() - begun:.0f} s in all, --seed {seed} draws the same")
    for problem in problems:
        console.print(f"not as it should be: {problem}", style="red")
    return 1 if problems else 0


class _Demo:
    """Starts the system, asks, shows, checks."""

    def __init__(
        self, config: DeploymentConfig, cluster: Cluster, console: Console, progress: StartProgress, seed: int
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._console = console
        self._progress = progress
        self._seed = seed

    async def run(self) -> list[str]:
        """What was not as it should be."""
        server = RouterServer(self._config, self._cluster)
        try:
            endpoint = await server.start(self._progress)
            self._progress.stop()
            async with AsyncClient(endpoint) as client:
                answers = [
                    await self._ask(client, case, question)
                    for case in self._shown(draw_cases(Random(self._seed)))
                    for question in case.questions
                ]
                topology = await client.topology()
                infos = {actor_id: await client.actor_info(actor_id) for actor_id in running_actors(topology)}
            self._show_work(topology, infos, answers)
        finally:
            await server.stop()
        return find_problems(answers, infos)

    def _shown(self, cases: Sequence[Case]) -> Iterator[Case]:
        """Each case, when its turn comes, after a look at it."""
        for case in cases:
            self._console.print()
            if case.pictures and self._console.is_terminal:
                self._console.print(half_blocks(case.pictures_to_show, PICTURE_ROWS), overflow="crop", end="")
            self._console.print(f"[bold]{case.title}[/bold]: {case.truth}")
            yield case

    async def _ask(self, client: AsyncClient, case: Case, question: Question) -> Answered:
        self._console.print(f"  question: {escape(question.text)}")
        self._console.print("  answer:   ", end="")
        stream = client.stream([case.message(question.text)], temperature=0.0, max_tokens=MAX_TOKENS)
        async for piece in stream:
            self._console.print(piece, end="", markup=False)
        answered = Answered(case, question.text, question.answer, await stream.answer())
        verdict = (
            "[green](right)[/green]" if answered.is_right else f"[yellow](truth: {escape(question.answer)})[/yellow]"
        )
        self._console.print(f"  {verdict}")
        return answered

    def _show_work(
        self,
        topology: admin_pb2.GetTopologyResponse,
        infos: dict[str, admin_pb2.ActorInfo],
        answers: list[Answered],
    ) -> None:
        lines = topology_lines(topology.stages, infos)
        self._console.print("\n[bold]who worked[/bold]")
        self._console.print("\n".join(lines), markup=False)
        embedding_lanes = Counter(lane for answered in answers for lane in answered.answer.route.embedding_lanes)
        kv_lanes = Counter(answered.answer.route.kv_lane for answered in answers if answered.answer.route.kv_lane)
        self._console.print(f"embeddings went over {_counts(embedding_lanes)}; KV pages over {_counts(kv_lanes)}")
        self._console.print("\n[bold]where the time went[/bold] (milliseconds)")
        for row in time_table(answers):
            self._console.print(row, markup=False)
        num_right = sum(answered.is_right for answered in answers)
        self._console.print(f"\n{num_right} of {len(answers)} answers are right word for word")


def find_problems(answers: list[Answered], infos: dict[str, admin_pb2.ActorInfo]) -> list[str]:
    """What contradicts "an encoder, a prefill and a decode actor answered": counted by the actors themselves."""
    problems = []
    num_media = sum(answered.case.num_media for answered in answers)
    num_taken = sum(info.encoder.accepted_items for info in infos.values())
    if num_taken != num_media:
        problems.append(f"the encoder counts {num_taken} pictures and videos, {num_media} were sent")
    for info in infos.values():
        is_encoder = info.stage == common_pb2.STAGE_ENCODER
        if is_encoder and info.weights.num_language_parameters:
            problems.append(f"{info.actor_id} holds language weights")
        if not is_encoder and info.weights.num_visual_parameters:
            problems.append(f"{info.actor_id} holds visual weights")
        if info.leases.held_leases:
            problems.append(f"{info.actor_id} still holds {info.leases.held_leases} leases")
    for answered in answers:
        route = answered.answer.route
        if not route.prefill_actor or not route.decode_actor or route.prefill_actor == route.decode_actor:
            problems.append(f"{answered.question!r} was not answered by a prefill and a decode actor")
    num_right = sum(answered.is_right for answered in answers)
    if num_right < LEAST_SHARE_RIGHT * len(answers):
        problems.append(f"only {num_right} of {len(answers)} answers are right")
    return problems


def time_table(answers: list[Answered]) -> list[str]:
    """A header and a row for each question, in columns."""
    names = ("prepare", "encode", "emb. move", "prefill", "KV move", "decode", "1st token", "total")
    rows = [" " * 12 + "".join(f"{name:>11}" for name in names)]
    for answered in answers:
        times = answered.answer.timings
        encode_s = times.encode_queue_s + times.encode_s
        figures = (
            times.prepare_s,
            encode_s,
            times.embedding_transfer_s,
            times.prefill_queue_s + times.prefill_s,
            times.kv_transfer_s,
            times.decode_s,
            times.time_to_first_token_s,
            times.total_s,
        )
        rows.append(f"{answered.case.title:<12}" + "".join(f"{seconds * 1000:>11.1f}" for seconds in figures))
    return rows


def _counts(lanes: Counter[str]) -> str:
    return ", ".join(f"{lane} ({count})" for lane, count in sorted(lanes.items())) or "nothing"
