"""Mode colocated: an encoder stage inside an LLM actor's process. The only place where two stages meet."""

from __future__ import annotations

from collections.abc import Sequence

from encoder_service.items import MediaItem
from encoder_service.loading import load_stage
from encoder_service.stage import EncoderStage
from llm_service.embedder import EmbeddedMedia, Embedder, MediaInput
from triptych.config import DeploymentConfig
from triptych.v1 import admin_pb2


async def build_embedder(config: DeploymentConfig, actor_id: str) -> Embedder:
    """Loads the vision tower and starts an encoder stage for the LLM actor `actor_id`, on the caller's event loop."""
    stage = await load_stage(config, actor_id)
    stage.start()
    return ColocatedEmbedder(stage)


class ColocatedEmbedder:
    """The in-process lane: embeddings are handed over as they are, without ticket, lease or copy."""

    def __init__(self, stage: EncoderStage) -> None:
        self._stage = stage

    async def embed(self, items: Sequence[MediaInput]) -> EmbeddedMedia:
        """Tensors in the order of the items, and the times of the slowest one; its preprocessing counts as encoding."""
        embeddings = await self._stage.embed(
            [MediaItem(item.content_key, item.grid, item.media, item.field) for item in items]
        )
        return EmbeddedMedia(
            tensors=tuple(embedding.tensor for embedding in embeddings),
            queue_s=max((embedding.queue_s for embedding in embeddings), default=0.0),
            encode_s=max((embedding.preprocess_s + embedding.encode_s for embedding in embeddings), default=0.0),
        )

    def weights(self) -> admin_pb2.Weights:
        count = self._stage.weights()
        return admin_pb2.Weights(
            num_visual_parameters=count.num_visual_parameters,
            num_language_parameters=count.num_language_parameters,
            num_bytes=count.num_bytes,
        )

    def counters(self) -> admin_pb2.EncoderCounters:
        return self._stage.counters()

    async def close(self) -> None:
        await self._stage.close()
