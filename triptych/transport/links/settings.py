"""LinkSettings: what both ends of a lane over links are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from triptych.transport.links.backend import MakeBackend


@dataclass(frozen=True)
class LinkSettings:
    """`device`: where tensors are sent from and arrive. `num_slots` transfers of one link may be on their way."""

    lane: str
    device: torch.device
    make_backend: MakeBackend
    timeout_s: float
    idle_s: float
    max_links: int
    num_slots: int
    has_checksums: bool
