"""How embeddings and KV pages pass between actors."""

from __future__ import annotations

from pydantic import Field

from triptych.config.section import Section
from triptych.config.units import MIB


class TransportSection(Section):
    lanes: tuple[str, ...] = Field(
        ("cuda_ipc", "nccl", "shm", "grpc"),
        description="Lanes allowed, best first; gloo is there too. One name forces it.",
    )
    shared_memory_bytes: int = Field(
        512 * MIB, ge=0, description="Slab a producer may fill under /dev/shm; 0 turns shm off."
    )
    cuda_slab_bytes: int = Field(
        512 * MIB, ge=0, description="GPU memory a producer takes when cuda_ipc is first used; 0 turns it off."
    )
    kv_part_bytes: int = Field(
        32 * MIB,
        ge=0,
        description="KV pages of a prompt leave in parts of this size, each when it is computed; 0: all at the end.",
    )
    kv_layer_groups: int = Field(
        4,
        ge=1,
        le=64,
        description="Parts are cut by layers, into as many groups as kv_part_bytes fills, but no more than this: the "
        "first leave while later layers are computed; 1: each part has all layers.",
    )
    kv_parts_under_way: int = Field(
        4, ge=1, le=64, description="Parts of one prompt and layer group that a decode actor fetches at once."
    )
    chunk_bytes: int = Field(1 * MIB, ge=4096, le=16 * MIB, description="One message of the lane grpc.")
    max_links: int = Field(16, ge=1, description="Links of one actor in one lane and direction (nccl, gloo).")
    link_slots: int = Field(4, ge=1, le=1024, description="Transfers that one link may have under way.")
    link_idle_s: float = Field(60.0, gt=0, description="A link that nobody used for so long is closed.")
    link_timeout_s: float = Field(
        5.0, gt=0, description="Most that opening a link, or one transfer over it, may take; the link is given up then."
    )
    lane_retry_s: float = Field(
        10.0, gt=0, description="A lane that failed between two actors is left out so long, doubled up to 8 times."
    )
    nccl_max_ctas: int = Field(8, ge=1, le=32, description="Channels of a link of the lane nccl: speed for memory.")
    memory_checksums: bool = Field(
        False,
        description="Checksums on shm, cuda_ipc and nccl too, not only on grpc and gloo; slow, to find faults.",
    )
    lease_s: float = Field(30.0, gt=0, description="A producer keeps a tensor that long without a heartbeat.")
    unknown_ticket_wait_s: float = Field(
        10.0, gt=0, description="How long a fetch waits for a ticket the producer has not heard of."
    )
