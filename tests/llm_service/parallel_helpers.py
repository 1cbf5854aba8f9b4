"""Groups of ranks over Gloo, each rank but the first on a thread of its own, and engines that are stepped by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llm_service.device_defaults import resolve_section
from llm_service.engine import Engine, StepOutput
from llm_service.loading import Computation, LoadedModel, build_computation, build_engine
from llm_service.model_runner import ModelRunner
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


def unchanged(computation: Computation) -> None:
    """The computation as it was built."""


class ParallelEngine:
    """An engine over `size` ranks, without its thread. `close` at the end."""

    def __init__(
        self,
        folder: Path,
        size: int,
        num_steps_ahead: int = 0,
        change: Callable[[Computation], None] = unchanged,
        **section: object,
    ) -> None:
        values = {"page_size": 8, "num_pages": 200, "tensor_parallel": size, "attention": "torch"} | section
        self.section = LanguageSection.model_validate(values)

        def changed(computation: Computation) -> None:
            if isinstance(computation.runner, ModelRunner):
                computation.runner.num_steps_ahead = num_steps_ahead
            change(computation)

        rendezvous = Rendezvous("127.0.0.1")
        self.followers = [
            FollowerThread(rank, size, rendezvous.address, folder, self.section, changed) for rank in range(1, size)
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
        if isinstance(runner._local, ModelRunner):
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
        for follower in self.followers:
            assert follower.follower is not None
            follower.follower.ended.result(timeout=TIMEOUT_S)
            follower.follower.stop(1.0)
