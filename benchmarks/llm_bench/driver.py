"""Drives an engine without a network: adds sequences, and stamps every token when it is published."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llm_service.collector import spare_the_collector
from llm_service.engine import Engine, StepOutput
from llm_service.loading import LoadedModel, build_engine
from llm_service.parallel.leader import LeaderLink
from llm_service.prompt import Prompt
from llm_service.sequence import Sequence
from triptych.config import LanguageSection
from triptych.sampling import SamplingParameters

_TIMEOUT_S = 60.0


@dataclass
class HostTimes:
    """Seconds that the engine's thread spent launching steps, and waiting for them."""

    launch_s: list[float] = field(default_factory=list)
    read_s: list[float] = field(default_factory=list)

    def summary_ms(self) -> dict[str, float]:
        return {
            name: round(1e3 * float(np.median(values)), 4) if values else 0.0
            for name, values in (("launch_ms", self.launch_s), ("read_ms", self.read_s))
        }


class EngineDriver:
    """Owns a started engine; `close` stops it. `stamps`: for each sequence when its tokens came, by perf_counter."""

    def __init__(self, model: LoadedModel, section: LanguageSection, link: LeaderLink | None = None) -> None:
        self.stamps: dict[Sequence, list[float]] = {}
        self.host = HostTimes()
        self._generator = np.random.default_rng(0)
        self._num_ended = 0
        self._errors: list[Exception] = []
        self._changed = threading.Condition()
        self.engine: Engine = build_engine(model, section, self._publish, link=link)
        self._link = link
        self._time_host_side()
        self.engine.start()
        self.engine.wait_ready()
        spare_the_collector()  # as an actor does

    def close(self) -> None:
        self.engine.stop()
        if self._link is not None:
            self._link.close()

    def sequences(self, count: int, num_prompt_tokens: int, max_tokens: int) -> list[Sequence]:
        """Greedy, to the full length, every prompt of its own random tokens."""
        positions = np.broadcast_to(np.arange(num_prompt_tokens), (3, num_prompt_tokens))
        sampling = SamplingParameters(max_tokens=max_tokens, ignore_eos=True)
        prompts = self._generator.integers(0, 150_000, (count, num_prompt_tokens)).tolist()
        return [Sequence("benchmark", Prompt(tuple(tokens), (), positions), sampling) for tokens in prompts]

    def add(self, sequences: list[Sequence]) -> float:
        """Returns when."""
        for sequence in sequences:
            self.stamps[sequence] = []
        now = time.perf_counter()
        self.engine.add(*sequences)
        return now

    def run(self, sequences: list[Sequence]) -> float:
        """Adds them all at once; returns the seconds until the last token of all."""
        started = self.add(sequences)
        self.wait(lambda: all(len(self.stamps[s]) >= s.sampling.max_tokens for s in sequences))
        return max(self.stamps[sequence][-1] for sequence in sequences) - started

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Raises what a sequence ended with, or TimeoutError."""
        with self._changed:
            is_over = self._changed.wait_for(lambda: bool(self._errors) or is_done(), _TIMEOUT_S)
        if self._errors:
            raise self._errors[0]
        if not is_over:
            raise TimeoutError(f"the engine took longer than {_TIMEOUT_S} s")

    def _publish(self, outputs: list[StepOutput]) -> None:
        now = time.perf_counter()
        is_news = False
        for output in outputs:
            stamps = self.stamps[output.sequence]
            stamps.extend([now] * len(output.token_ids))
            is_news |= output.is_last or len(stamps) == 1
            if output.error is not None:
                self._errors.append(output.error)
        if is_news:
            with self._changed:
                self._changed.notify_all()

    def _time_host_side(self) -> None:
        runner, host = self.engine.runner, self.host
        launch = runner.launch

        def timed_launch(chunks, watch=None):  # type: ignore[no-untyped-def]
            started = time.perf_counter()
            step = launch(chunks, watch)
            host.launch_s.append(time.perf_counter() - started)
            read = step.read

            def timed_read():  # type: ignore[no-untyped-def]
                began = time.perf_counter()
                tokens = read()
                host.read_s.append(time.perf_counter() - began)
                return tokens

            object.__setattr__(step, "read", timed_read)
            return step

        runner.launch = timed_launch  # type: ignore[method-assign]
