"""The engine that runs everywhere: the tower in plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from encoder_service.engines import EngineSource, WeightCount
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.models.qwen2_5_vl.vision import VisionTower
from triptych.models.qwen2_5_vl.vision.tower import activation_bytes
from triptych.models.qwen2_5_vl.weights import load_vision_tower


class TorchVisionEngine:
    """One packed forward a batch."""

    def __init__(self, tower: VisionTower) -> None:
        parameter = next(tower.parameters())
        self.dtype = parameter.dtype
        self.device = parameter.device
        self._tower = tower

    @classmethod
    def load(cls, source: EngineSource) -> "TorchVisionEngine":
        tower = load_vision_tower(source.folder, source.config, source.dtype, source.device)
        source.hold_weights(list(tower.parameters()))
        return cls(tower)

    @torch.inference_mode()
    def encode(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        embeddings: Tensor = self._tower(patches, grids)
        return separate(embeddings, grids, self._tower.config.spatial_merge_size)

    def activation_bytes(self, num_patches: int) -> int:
        return activation_bytes(self._tower.config, num_patches, self.dtype)

    def weights(self) -> WeightCount:
        parameters = list(self._tower.parameters())
        return WeightCount(
            num_visual_parameters=sum(parameter.numel() for parameter in parameters),
            num_language_parameters=0,
            num_bytes=sum(parameter.nbytes for parameter in parameters),
        )


def separate(embeddings: Tensor, grids: Sequence[Grid], merge: int) -> list[Tensor]:
    """The packed embeddings of each grid. A view would keep the whole batch in memory for as long as one item of it is
    cached or leased."""
    parts = torch.split(embeddings, [grid.num_tokens(merge) for grid in grids])
    return [part.clone() for part in parts] if len(parts) > 1 else [embeddings]
