"""Worker processes that draw whole batches into shared memory: the training loop only copies bytes to the GPU."""

import json
import mmap
import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from random import Random

import numpy as np

from tools.tiny_model.samples import Array, Batch, BatchBuilder

_ALIGNMENT = 64
_MAX_MESSAGE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class ArrayPlace:
    """Where an array lies in a slot."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class DrawnBatch:
    """A batch in a worker's slot: valid until `release`."""

    memory: Array
    places: tuple[ArrayPlace, ...]
    num_samples: int
    release: Callable[[], None]


class BatchWorkers:
    """Forks `num_workers` processes, each with `num_slots` slots of shared memory. Fork before CUDA is initialised."""

    def __init__(self, builder: BatchBuilder, num_workers: int, seed: int, slot_bytes: int, num_slots: int = 3) -> None:
        context = multiprocessing.get_context("fork")
        self._slots: dict[Connection, list[mmap.mmap]] = {}
        self._processes = []
        for index in range(num_workers):
            here, there = context.Pipe()
            slots = [mmap.mmap(-1, slot_bytes) for _ in range(num_slots)]
            process = context.Process(
                target=_draw_batches, args=(builder, there, slots, f"{seed}-{index}"), daemon=True
            )
            process.start()
            there.close()
            self._slots[here] = slots
            self._processes.append(process)

    def next(self) -> DrawnBatch:
        """The next batch that any worker has finished. Raises EOFError when a worker died."""
        connection = wait(list(self._slots))[0]
        assert isinstance(connection, Connection)
        message = json.loads(connection.recv_bytes(_MAX_MESSAGE_BYTES))
        if "error" in message:
            raise RuntimeError(f"a drawing process failed: {message['error']}")
        places = tuple(ArrayPlace(name, dtype, tuple(shape), at) for name, dtype, shape, at in message["arrays"])
        slot = message["slot"]
        memory = np.frombuffer(self._slots[connection][slot], np.uint8, message["num_bytes"])
        return DrawnBatch(memory, places, message["num_samples"], lambda: connection.send_bytes(bytes([slot])))

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()


def _draw_batches(builder: BatchBuilder, connection: Connection, slots: list[mmap.mmap], seed: str) -> None:
    """A worker's life: fill every slot, then refill each one that comes back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rng = Random(seed)
    free = list(range(len(slots)))
    while True:
        if not free:
            try:
                free.append(connection.recv_bytes(1)[0])
            except EOFError:
                return
        slot = free.pop()
        try:
            batch = builder.build(rng)
            message = {"slot": slot, **_write(batch, slots[slot])}
        except Exception as error:  # told to the parent, which decides
            message = {"error": f"{type(error).__name__}: {error}"}
        connection.send_bytes(json.dumps(message).encode())


def _write(batch: Batch, memory: mmap.mmap) -> dict[str, object]:
    view = np.frombuffer(memory, np.uint8)
    places: list[tuple[str, str, tuple[int, ...], int]] = []
    offset = 0
    for name, array in batch.items():
        end = offset + array.nbytes
        if end > len(view):
            raise ValueError(f"the batch needs more than the slot's {len(view)} bytes")
        view[offset:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        places.append((name, array.dtype.name, array.shape, offset))
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
    return {"arrays": places, "num_bytes": offset, "num_samples": int(batch["num_samples"][0])}
