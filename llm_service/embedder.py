"""What an LLM actor that carries a vision tower asks of it (TLLM_MULTIMODAL_DISAGGREGATED=0)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from triptych.config import DeploymentConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.v1 import admin_pb2, common_pb2


@dataclass(frozen=True)
class MediaInput:
    """A picture or video to embed. `field` names it in messages, as `prompt.media[2].media`."""

    content_key: str
    grid: Grid
    media: common_pb2.Media
    field: str


@dataclass(frozen=True)
class EmbeddedMedia:
    """An embedding [num_tokens, hidden] for each item, and the times of the slowest."""

    tensors: tuple[Tensor, ...]
    queue_s: float
    encode_s: float


class Embedder(Protocol):
    """An encoder stage in this process. Errors are those of the encoder service; cancelling drops the work."""

    async def embed(self, items: Sequence[MediaInput]) -> EmbeddedMedia: ...

    def weights(self) -> admin_pb2.Weights:
        """Counted on the live modules."""
        ...

    def counters(self) -> admin_pb2.EncoderCounters: ...

    async def close(self) -> None: ...


# Given the configuration and the actor's incarnation id; loads the tower.
BuildEmbedder = Callable[[DeploymentConfig, str], Awaitable[Embedder]]
