"""Brings drawn batches to the device in a thread of its own: one copy a batch, a few batches ahead of the training."""

import queue
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tools.tiny_model.samples import Batch
from tools.tiny_model.workers import BatchWorkers, DrawnBatch

_INT64 = ("ids", "vision_positions", "label_positions", "labels", "answer_of", "kinds", "cells", "cell_classes")


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """A batch's tensors on the device, and how many conversations it holds."""

    tensors: dict[str, Tensor]
    num_samples: int


class DeviceLoader:
    """Hands out batches that are already on the device; raises in `next` what went wrong in the thread."""

    def __init__(self, workers: BatchWorkers, device: torch.device, depth: int = 3) -> None:
        self._workers, self._device = workers, device
        self._ready: queue.Queue[DeviceBatch | Exception] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._run, name="device-loader", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float = 120.0) -> DeviceBatch:
        batch = self._ready.get(timeout=timeout_s)
        if isinstance(batch, Exception):
            raise batch
        return batch

    def _run(self) -> None:
        try:
            while True:
                self._ready.put(self._upload(self._workers.next()))
        except Exception as error:
            self._ready.put(error)

    def _upload(self, drawn: DrawnBatch) -> DeviceBatch:
        memory = torch.from_numpy(drawn.memory)
        memory = memory.pin_memory() if self._device.type == "cuda" else memory.clone()
        drawn.release()
        memory = memory.to(self._device, non_blocking=True)
        tensors = {}
        for place in drawn.places:
            dtype = getattr(torch, place.dtype)
            size = int(np.prod(place.shape)) * dtype.itemsize
            tensors[place.name] = memory[place.offset : place.offset + size].view(dtype).view(place.shape)
        return DeviceBatch(_with_index_types(tensors), drawn.num_samples)


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """A batch that was built in this process."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in batch.items()}
    return DeviceBatch(_with_index_types(tensors), int(batch["num_samples"][0]))


def _with_index_types(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.long() if name in _INT64 else tensor for name, tensor in tensors.items()}
