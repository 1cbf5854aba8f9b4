"""ParallelRunner: one step on all ranks of a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from llm_service.logit_rules import StopTokens
from llm_service.logprobs import TokenLogprob
from llm_service.parallel.frames import FrameKind
from llm_service.parallel.leader import LeaderLink
from llm_service.parallel.step_writer import StepWriter
from llm_service.runner import LaunchedStep, LayerWatch, Runner
from llm_service.scheduler import Chunk
from llm_service.sequence import Sequence
from triptych.errors import TriptychError, Unavailable


@dataclass(frozen=True)
class ParallelStep:
    """The leader's part of a step. Its tokens are those of all ranks."""

    step: LaunchedStep
    link: LeaderLink

    @property
    def chunks(self) -> list[Chunk]:
        return self.step.chunks

    def read(self) -> list[int | None]:
        """Raises Unavailable when a rank was lost: what came out of a step that was ended means nothing."""
        tokens = self.step.read()
        self.link.check()
        return tokens

    def logprobs(self) -> Mapping[Sequence, TokenLogprob]:
        return self.step.logprobs()


class ParallelRunner:
    """Tells the followers of each step before the leader's own runner launches it.

    Every rank samples for itself: the logits of all ranks are the same bits everywhere, and a draw depends on the
    sequence alone, so the tokens are equal and are already on each device for the step after.
    """

    def __init__(self, local: Runner, link: LeaderLink, dtype: torch.dtype) -> None:
        self.num_steps_ahead = local.num_steps_ahead
        self._local = local
        self._link = link
        self._dtype = dtype
        self._writer = StepWriter()

    @property
    def sampler(self) -> StopTokens:
        return self._local.sampler

    def prepare(self) -> None:
        self._link.tell(FrameKind.PREPARE)
        self._local.prepare()

    @torch.inference_mode()
    def launch(self, chunks: list[Chunk], watch: LayerWatch | None = None) -> ParallelStep:
        """Raises what the local runner refuses before it computes, as the runners of all ranks do; and Unavailable when
        a rank is lost.

        Tells nothing of its layers: what an export gathers from the ranks would meet the sums of their step.
        """
        self._link.check()
        written = self._writer.write(chunks)
        self._link.send(written.frame)
        collectives = self._link.collectives
        for rows in written.media:
            collectives.broadcast(rows.to(collectives.device, self._dtype).contiguous())
        try:
            return ParallelStep(self._local.launch(chunks), self._link)
        except Unavailable as error:
            self._link.lose(str(error))
            raise
        except TriptychError:
            raise
        except Exception as error:
            # Followers may have computed what the leader has not: from here on the ranks would differ.
            self._link.lose(f"a step failed on the leader: {type(error).__name__}: {str(error)[:300]}")
            raise
