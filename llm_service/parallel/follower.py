"""Follower: does what the leader tells, on a thread of its own."""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import torch
from torch import Tensor

from llm_service.loading import Computation
from llm_service.parallel.collectives import TorchCollectives
from llm_service.parallel.frames import Frame, FrameKind, receive_frame
from llm_service.parallel.hangup import HangupWatch
from llm_service.parallel.step_reader import MirroredSequence, StepReader
from llm_service.runner import LaunchedStep
from triptych.errors import TriptychError, Unavailable

logger = logging.getLogger(__name__)


class Follower:
    """Reads frames from `stream` and takes part in the collectives that they bring, until the leader ends.

    `build` makes the rank's cache and runner, on the thread that uses them. ended: set when the thread is over.
    """

    def __init__(
        self,
        stream: socket.socket,
        collectives: TorchCollectives,
        dtype: torch.dtype,
        reader: StepReader,
        build: Callable[[], Computation],
    ) -> None:
        self.ended: Future[None] = Future()
        self._stream = stream
        self._collectives = collectives
        self._dtype = dtype
        self._reader = reader
        self._build = build
        self._in_flight: deque[LaunchedStep] = deque()
        # A leader that died leaves collectives behind that nobody else will ever end.
        self._watch = HangupWatch({0: stream}, lambda rank: collectives.abort())
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread, whatever it does; the leader notices. Idempotent."""
        self._watch.close()
        try:
            self._stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            logger.debug("the stream to the leader ended before")
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s / 2)
            if self._thread.is_alive():
                self._collectives.abort()
                self._thread.join(timeout_s / 2)
        self._stream.close()

    @torch.inference_mode()
    def _follow(self) -> None:
        try:
            computation = self._build()
            while (frame := receive_frame(self._stream)).kind is not FrameKind.STOP:
                self._do(frame, computation)
        except (EOFError, OSError, Unavailable) as error:
            logger.warning("rank %d ends, for its leader is gone: %s", self._collectives.rank, error)
        except Exception:
            logger.exception("rank %d of the group fails", self._collectives.rank)
        finally:
            self._watch.close()
            self._collectives.close()
            try:
                # What tells the leader.
                self._stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                logger.debug("the leader ended first")
            self.ended.set_result(None)

    def _do(self, frame: Frame, computation: Computation) -> None:
        cache = computation.cache
        match frame.kind:
            case FrameKind.PREPARE:
                computation.runner.prepare()
            case FrameKind.STEP:
                self._step(frame, computation)
            case FrameKind.EXPORT:
                first_layer, end_layer, *pages = frame.integers.tolist()
                self._collectives.gather(cache.copy_pages(pages, slice(first_layer, end_layer)))
            case FrameKind.IMPORT:
                pages = frame.integers.tolist()
                shape = (len(pages), *cache.shape.dims)
                own = torch.empty(shape, dtype=cache.shape.dtype, device=cache.device)
                self._collectives.scatter(own)
                cache.import_pages(pages, own)
            case _:
                raise AssertionError(f"a leader never sends {frame.kind.name}")

    def _step(self, frame: Frame, computation: Computation) -> None:
        chunks = self._reader.read(frame, self._receive_rows)
        try:
            self._in_flight.append(computation.runner.launch(chunks))
        except Unavailable:
            raise
        except TriptychError as error:
            # The leader's runner refuses the same, before anything is computed, and goes on.
            logger.debug("a step is refused: %s", error)
            return
        while len(self._in_flight) > computation.runner.num_steps_ahead:
            self._note_tokens(self._in_flight.popleft())

    def _note_tokens(self, step: LaunchedStep) -> None:
        """To be held against what the leader tells of them later."""
        for chunk, token in zip(step.chunks, step.read(), strict=True):
            if token is not None and isinstance(chunk.sequence, MirroredSequence):
                chunk.sequence.chosen[chunk.end] = token

    def _receive_rows(self, num_rows: int, num_columns: int) -> Tensor:
        rows = torch.empty((num_rows, num_columns), dtype=self._dtype, device=self._collectives.device)
        self._collectives.broadcast(rows)
        return rows
