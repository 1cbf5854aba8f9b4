"""Groups of ranks over Gloo, each rank but the first on a thread or in a process of its own, and engines over them that
are stepped by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llm_service.device_defaults import resolve_section
from llm_service.engine import Engine, StepOutput
from llm_service.loading import Computation, LoadedModel, build_computation, build_engine
from llm_service.parallel.collectives import TorchCollectives
from llm_service.parallel.follower import Follower
from llm_service.parallel.frames import Frame, FrameKind
from llm_service.parallel.leader import LeaderLink
from llm_service.parallel.rank_info import describe_rank
from llm_service.parallel.rendezvous import Rendezvous, RendezvousAddress, join
from llm_service.parallel.runner import ParallelRunner
from llm_service.parallel.step_reader import StepReader
from llm_service.sequence import Sequence
from triptych.config import DefaultsSection, LanguageSection, LimitsSection

CPU = torch.device("cpu")
TIMEOUT_S = 60.0


@dataclass
class FollowerThread:
    """As FollowerActor puts it together, but that the model comes from a folder."""

    rank: int
    size: int
    address: RendezvousAddress
    folder: Path
    section: LanguageSection
    change: Callable[[Computation], None]
    model: LoadedModel | None = None
    follower: Follower | None = None
    computation: Computation | None = None
    reader: StepReader = field(default_factory=lambda: StepReader(DefaultsSection(), LimitsSection()))

    def run(self) -> None:
        stream = join(self.address, self.rank, self.size, TIMEOUT_S)
        collectives = TorchCollectives.connect(
            "127.0.0.1", self.address.store_port, self.rank, self.size, CPU, TIMEOUT_S, own_host="127.0.0.1"
        )
        try:
            model = self.model = LoadedModel.from_folder(self.folder, torch.float32, CPU, collectives=collectives)
        except BaseException:
            stream.close()
            raise
        stream.sendall(Frame.of(FrameKind.LOADED, data=describe_rank(self.rank, model).SerializeToString()).pack())

        def build() -> Computation:
            self.computation = build_computation(model, resolve_section(self.section, CPU))
            self.change(self.computation)
            return self.computation

        self.follower = Follower(stream, collectives, model.dtype, self.reader, build)
        self.follower.start()


def steps_ahead(count: int) -> Callable[[Computation], None]:
    """Has so many steps in flight beside the newest, which elsewhere the device decides."""

    def change(computation: Computation) -> None:
        computation.runner.num_steps_ahead = count

    return change


class ParallelEngine:
    """An engine over `size` ranks, without its thread. `close` at the end."""

    def __init__(
        self,
        folder: Path,
        size: int,
        num_steps_ahead: int = 0,
        in_processes: bool = False,
        **section: object,
    ) -> None:
        values = {"page_size": 8, "num_pages": 200, "tensor_parallel": size, "attention": "torch"} | section
        self.section = LanguageSection.model_validate(values)
        rendezvous = Rendezvous("127.0.0.1")
        ranks = range(1, size)
        self.followers: list[FollowerThread] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        if in_processes:
            words = [str(size), str(folder), str(num_steps_ahead), rendezvous.address.to_text()]
            words.append(self.section.model_dump_json())
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            command = [sys.executable, str(Path(__file__).with_name("follower_process.py"))]
            self.processes = [subprocess.Popen([*command, str(rank), *words], env=environment) for rank in ranks]
        else:
            change = steps_ahead(num_steps_ahead)
            self.followers = [
                FollowerThread(rank, size, rendezvous.address, folder, self.section, change) for rank in ranks
            ]
        threads = [threading.Thread(target=follower.run, daemon=True) for follower in self.followers]
        for thread in threads:
            thread.start()
        self.link = LeaderLink.gather(rendezvous, size, CPU, TIMEOUT_S)
        self.model = LoadedModel.from_folder(folder, torch.float32, CPU, collectives=self.link.collectives)
        self.ranks = [describe_rank(0, self.model), *self.link.wait_loaded()]
        self.outputs: list[StepOutput] = []
        self.engine: Engine = build_engine(self.model, self.section, self.outputs.extend, link=self.link)
        runner = self.engine.runner
        assert isinstance(runner, ParallelRunner)
        runner.num_steps_ahead = num_steps_ahead
        runner._local.num_steps_ahead = num_steps_ahead
        runner.prepare()
        for thread in threads:
            thread.join()

    def step(self) -> None:
        self.outputs.extend(self.engine._step())
        self.engine.scheduler.pool.check()

    def run(self, sequences: Iterable[Sequence] = ()) -> None:
        """Adds the sequences and steps until all work is done."""
        self.engine.add(*sequences)
        self.step()
        for _ in range(2_000):
            if not self.engine.scheduler.has_work:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def close(self) -> None:
        self.link.close()
        for process in self.processes:
            assert process.wait(TIMEOUT_S) == 0
        for follower in self.followers:
            assert follower.follower is not None
            follower.follower.ended.result(timeout=TIMEOUT_S)
            follower.follower.stop(1.0)
