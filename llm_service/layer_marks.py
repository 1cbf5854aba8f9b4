"""LayerMarks: where on the device's own time line the layers of a launched step end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_service.runner import LayerWatch
from triptych.kernels.prefetch import Upcoming
from triptych.models.qwen2_5_vl.fused import PackedAttention, PackedRotary


class LayerMarks:
    """Events behind the attention of the layers that are watched, recorded on the current stream; `report` waits for
    them. Of one step, and for one thread."""

    def __init__(self, watch: LayerWatch, device: torch.device) -> None:
        self._watch = watch
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[int, torch.cuda.Event | None]] = []

    def beside(self, attention: PackedAttention) -> PackedAttention:
        """The same attention, with marks."""
        return _MarkedAttention(attention, self)

    def note_attended(self, layer_index: int) -> None:
        """The layer's keys and values are on their way to their pages; what follows in the layer changes none."""
        if layer_index + 1 not in self._watch.ends:
            return
        event = None
        if self._is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._marks.append((layer_index + 1, event))

    def report(self) -> None:
        """Waits for each mark and tells of it."""
        for num_layers, event in self._marks:
            if event is not None:
                event.synchronize()
            self._watch.report(num_layers)


@dataclass(frozen=True)
class _MarkedAttention:
    attention: PackedAttention
    marks: LayerMarks

    def attend_packed(
        self, layer_index: int, qkv: Tensor, rotary: PackedRotary, upcoming: Upcoming | None = None
    ) -> Tensor:
        output = self.attention.attend_packed(layer_index, qkv, rotary, upcoming)
        self.marks.note_attended(layer_index)
        return output
