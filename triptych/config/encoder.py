"""The encoder stage."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from triptych.config.actor import ActorSection
from triptych.config.section import Section
from triptych.config.units import MIB


class VisionPrecision(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class TensorRTSection(Section):
    """The vision engine tensorrt: for which sizes it is built, and where built engines are kept (docs/tensorrt.md)."""

    min_patches: int = Field(4, ge=1, description="Fewest patches of one call; fewer are filled up with blank ones.")
    opt_patches: int = Field(4_784, ge=1, description="Patches of the call to be fastest at: one 720p picture.")
    max_patches: int = Field(
        0, ge=0, description="Most patches of one call; 0: the largest picture of the model's own processing."
    )
    precision: VisionPrecision = Field(VisionPrecision.AUTO, description="Weights and arithmetic; auto: model.dtype.")
    cache_folder: str = Field(
        "~/.cache/triptych/engines",
        description="Built engines. They are code: the folder must belong to the encoder's user and be writable by "
        "nobody else.",
    )


class EncoderSection(ActorSection):
    engine: str = Field(
        "auto",
        description="Vision engine: auto (fused on a GPU that has Triton, tensorrt on one that has not where it can be "
        "used, else torch), fused, tensorrt or torch.",
    )
    max_graph_patches: int = Field(
        8_192, ge=0, description="Batches of at most so many patches run as captured CUDA graphs (fused); 0: none."
    )
    max_pending_patches: int = Field(
        262_144, ge=1, description="Admission: patches waiting or running; over it RESOURCE_EXHAUSTED."
    )
    batching: str = Field(
        "shortest_work_first",
        description="What goes into the next batch: shortest_work_first (with ageing) or first_come.",
    )
    ageing_s: float = Field(
        0.5,
        ge=0,
        description="shortest_work_first: how long after its arrival an item of max_batch_patches may be overtaken by "
        "smaller ones; smaller ones proportionally shorter.",
    )
    max_batch_patches: int = Field(
        0, ge=0, description="Patches fused into one packed forward; a larger item goes alone; 0: by device."
    )
    batch_wait_ms: float = Field(
        0.0, ge=0, description="How long a lone item waits for company; a batch that runs is company's time anyway."
    )
    activation_bytes: int = Field(
        0,
        ge=0,
        description="Memory of batches in work: forward pass, patches, decoded pixels, embeddings; an item that needs "
        "more is refused; 0: by device.",
    )
    cache_bytes: int = Field(256 * MIB, ge=0, description="Embedding cache by content key, on the engine's device.")
    host_cache_bytes: int = Field(
        1024 * MIB, ge=0, description="What falls out of a GPU's cache, in pinned host memory; unused on a CPU."
    )
    media: str = Field(
        "auto",
        description="Where media become patches: auto (gpu where the stage has one, else cpu), cpu or gpu.",
    )
    media_workers: int = Field(
        0, ge=0, description="Threads that check media and decode on the CPU what the GPU does not; 0: by device."
    )
    media_bytes: int = Field(
        1024 * MIB,
        ge=1 * MIB,
        description="Decoded pixels on the GPU at one time (gpu); a single picture that is larger goes alone.",
    )
    tensorrt: TensorRTSection = TensorRTSection()
