"""The stages that carry the language model: prefill, decode, or both in one actor."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from triptych.config.actor import ActorSection
from triptych.config.units import MIB


class Placement(StrEnum):
    """How the processes of one actor are spread over nodes."""

    STRICT_PACK = "strict_pack"
    PACK = "pack"


class LanguageSection(ActorSection):
    """Where 0 means "by device", `llm_service/device_defaults.py` has the values."""

    attention: str = Field(
        "auto",
        description="Attention backend: auto (triton on a GPU that has Triton, else torch), torch, triton, or "
        "flashinfer (where the package is installed; without graphs).",
    )
    page_size: int = Field(16, ge=1, description="Tokens a KV page holds. Must be equal on prefill and decode actors.")
    num_pages: int = Field(0, ge=0, description="KV pages; 0: as many as kv_cache_bytes hold.")
    kv_cache_bytes: int = Field(
        0,
        ge=0,
        description="Memory of the KV pages; 0: by device, on a GPU what gpu_memory_fraction leaves free.",
    )
    export_bytes: int = Field(
        1024 * MIB,
        ge=0,
        description="GPU memory beside the cache for copies of KV pages that decode actors are to fetch; what is more "
        "waits in host memory.",
    )
    gpu_memory_fraction: float = Field(
        0.9, gt=0, lt=1, description="Part of the GPU's memory that may be in use once the KV cache is there."
    )
    max_running_requests: int = Field(0, ge=0, description="Sequences that take part in a step; 0: by device.")
    max_waiting_tokens: int = Field(
        131_072, ge=1, description="Admission: prompt tokens waiting; over it RESOURCE_EXHAUSTED."
    )
    max_step_tokens: int = Field(
        0, ge=0, description="Token budget of one engine step, decode tokens included; 0: by device."
    )
    prefill_chunk_tokens: int = Field(
        0, ge=0, description="Most prompt tokens of one request in one step; 0: by device."
    )
    mixed_prefill_tokens: int = Field(
        0,
        ge=0,
        description="Most prompt tokens of a step in which sequences decode, fewer where they attend to a long "
        "context: how long a prompt may hold up running streams; 0: by device.",
    )
    overlap_encode: bool = Field(
        True,
        description="Prefill begins before all pictures of a prompt are encoded, as far as they are there: a sooner "
        "first token, for more and smaller steps.",
    )
    overlap_min_tokens: int = Field(
        256,
        ge=1,
        description="overlap_encode: fewer prompt tokens in front of a picture that is still to come wait for it.",
    )
    max_context_tokens: int = Field(0, ge=0, description="Prompt and answer together; 0: what the model was made for.")
    enable_prefix_cache: bool = Field(True, description="Reuse KV pages of equal prompt beginnings.")
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes, each with num_cpus and num_gpus of its own, that share the weights and the KV cache of "
        "one actor. Must divide the model's KV heads; may differ between prefill and decode.",
    )
    tensor_parallel_placement: Placement = Field(
        Placement.STRICT_PACK,
        description="Where an actor's processes run: strict_pack (on one node) or pack (on few).",
    )


class PrefillDecodeSection(LanguageSection):
    """Actors that prefill and decode: none unless asked for, or in mode colocated."""

    replicas: int = Field(0, ge=0, le=1024, description="Actors of this stage at the start; in mode colocated 1.")
