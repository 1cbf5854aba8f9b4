"""DeploymentConfig: the one schema behind the YAML file, the environment and the command line.

Precedence: command line over environment (`TRIPTYCH_STAGES__ENCODER__REPLICAS=2`, two underscores a level) over file
over the defaults below. Unknown keys are errors. Helm values and `triptych serve --config` share these names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from triptych.config_access import FetchSection, SecuritySection
from triptych.config_error import configuration_error, origins_of
from triptych.config_scaling import ScalingSection
from triptych.config_section import Section
from triptych.config_telemetry import TelemetrySection
from triptych.errors import ConfigurationError

ENVIRONMENT_PREFIX = "TRIPTYCH_"
# What the commands that are clients read from the environment; no keys of the configuration.
CLIENT_VARIABLES = ("TRIPTYCH_TOKEN", "TRIPTYCH_AUTHORITY")
BUILT_IN_MODEL = "tiny"

MIB = 1024 * 1024


class Mode(StrEnum):
    """`disaggregated`: encoder actors and LLM actors without a tower. `colocated`: LLM actors that carry the tower.

    `auto`: LLM actors that prefill carry the tower beside encoder actors, and each request is encoded where that costs
    less.
    """

    DISAGGREGATED = "disaggregated"
    COLOCATED = "colocated"
    AUTO = "auto"


class DType(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Quantization(StrEnum):
    NONE = "none"
    FP8 = "fp8"


class Placement(StrEnum):
    """How the processes of one actor are spread over nodes."""

    STRICT_PACK = "strict_pack"
    PACK = "pack"


class ModelSection(Section):
    path: str = Field(
        BUILT_IN_MODEL, description=f"Checkpoint folder; '{BUILT_IN_MODEL}' is the small model in the package."
    )
    name: str = Field("", description="Name that clients may ask for; the folder's name when empty.")
    dtype: DType = Field(DType.AUTO, description="auto: bfloat16 on a GPU, float32 on a CPU.")
    device: str = Field("auto", description="auto | cpu | cuda")
    quantization: Quantization = Field(
        Quantization.NONE,
        description="fp8: linear layers of the language model in e4m3, one scale per output channel (GPU).",
    )


class ActorSection(Section):
    """What every actor of a stage asks the cluster for, and how many there are."""

    replicas: int = Field(1, ge=0, le=1024, description="Actors of this stage at the start.")
    num_cpus: float = Field(
        0.5, gt=0, description="Logical CPUs a Ray actor holds; above 0, or the node counts as idle."
    )
    num_gpus: float = Field(0, ge=0, description="GPUs a Ray actor holds.")
    num_threads: int = Field(1, ge=1, description="Threads of the stage's CPU arithmetic (OMP_NUM_THREADS).")


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


class StagesSection(Section):
    encoder: EncoderSection = EncoderSection()
    prefill: LanguageSection = LanguageSection()
    decode: LanguageSection = LanguageSection()
    prefill_decode: PrefillDecodeSection = PrefillDecodeSection()


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


class LimitsSection(Section):
    max_message_bytes: int = Field(64 * MIB, ge=4096, description="One gRPC message, both directions.")
    max_image_bytes: int = Field(32 * MIB, ge=1, description="One image file, or one frame.")
    max_video_bytes: int = Field(56 * MIB, ge=1, description="One video file, or all frames of one.")
    max_image_pixels: int = Field(
        64_000_000, ge=1, description="Width times height in the file's header, before anything is decoded."
    )
    max_video_frames: int = Field(
        4_096, ge=1, description="Frames in the file; how many are sampled is the model's choice."
    )
    max_video_pixels: int = Field(
        10_000_000_000, ge=1, description="Frames in the file times the pixels of one, before anything is decoded."
    )
    max_media_items: int = Field(64, ge=0, description="Pictures and videos of one request.")
    max_messages: int = Field(1_024, ge=1, description="Messages of one request.")
    max_text_bytes: int = Field(4 * MIB, ge=1, description="All text of one request.")
    max_stop_strings: int = Field(16, ge=0, description="Stop strings of one request.")
    max_new_tokens: int = Field(32_768, ge=1, description="Most that sampling.max_tokens may ask for.")
    max_choices: int = Field(16, ge=1, le=1024, description="Most that sampling.n may ask for: answers of one prompt.")
    max_logprobs: int = Field(
        20, ge=0, le=1024, description="Most that sampling.logprobs may ask for: likeliest tokens told with each token."
    )
    max_logit_biases: int = Field(1_024, ge=0, description="Entries of sampling.logit_bias.")
    max_constraint_bytes: int = Field(
        65_536, ge=1, description="JSON schema, regular expression or list of texts that an answer is held to."
    )
    max_pending_requests: int = Field(512, ge=1, description="Requests inside the router; over it RESOURCE_EXHAUSTED.")
    max_pending_bytes: int = Field(
        1_024 * MIB,
        ge=4096,
        description="Text, pictures and videos of all requests inside a router process; over it RESOURCE_EXHAUSTED.",
    )


class DefaultsSection(Section):
    """What a request gets when it does not say."""

    max_tokens: int = Field(512, ge=1, description="sampling.max_tokens.")
    temperature: float = Field(0.0, ge=0, le=2, description="sampling.temperature; 0 is greedy.")
    timeout_s: float = Field(
        120.0, gt=0, description="Deadline of a request that brings none; also the longest one accepted."
    )


class RouterSection(Section):
    host: str = Field("127.0.0.1", description="Address that clients connect to.")
    port: int = Field(50_051, ge=0, le=65_535, description="0: any free port (printed).")
    http_port: int = Field(
        8_000, ge=-1, le=65_535, description="Port of the OpenAI HTTP API; 0: any free port (printed), -1: none."
    )
    max_attempts: int = Field(4, ge=1, description="How often the walk of a request is begun when actors die under it.")
    placement: str = Field(
        "cache_aware",
        description="Placement policy by name: cache_aware, least_loaded, power_of_two (many routers) or round_robin.",
    )
    ageing_s: float = Field(
        2.0,
        gt=0,
        description="While the stages are full: text goes before pictures, pictures before videos, and after every "
        "ageing_s of waiting a request counts as one kind cheaper.",
    )
    kv_overcommit: float = Field(
        2.0,
        gt=0,
        description="Tokens that requests may grow to, as a multiple of those the KV caches hold: most answers end "
        "before max_tokens.",
    )
    max_chunks_per_s: float = Field(
        2_500.0,
        gt=0,
        description="Chunks that a router process sends in a second, about: when more answers run each gets its tokens "
        "in fewer, larger chunks.",
    )
    circuit_failures: int = Field(
        3, ge=1, description="An actor that fails so many requests in a row gets no new ones for a while."
    )
    circuit_pause_s: float = Field(
        1.0, gt=0, description="For how long, before one request tries it again; doubles with every trial that fails."
    )
    hedge_encode: bool = Field(
        False,
        description="Begin a request a second time on other encoders when it has no token after the p99 of encoding; "
        "the slower one is cancelled.",
    )
    stall_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Mode auto: how much a running answer is slowed while the tower of its own actor works; "
        "1: it stands still.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes behind the same ports, each with a share of the connections. They divide "
        "limits.max_pending_requests, limits.max_pending_bytes and the room of the stages; max_chunks_per_s and the "
        "limits of a token hold in each by itself. More than 1 needs SO_REUSEPORT (Linux).",
    )
    media_workers: int = Field(2, ge=1, description="Threads that read media headers and tokenize.")


class ControlSection(Section):
    address: str = Field(
        "", description="Ray cluster: empty starts a local one, 'auto' joins the one of this machine, else host:port."
    )
    namespace: str = Field("triptych", description="Ray namespace of the actors.")
    reconcile_interval_s: float = Field(0.5, gt=0, description="How often wanted and running are compared.")
    health_timeout_s: float = Field(5.0, gt=0, description="An actor that does not answer that long is replaced.")
    start_timeout_s: float = Field(300.0, gt=0, description="An actor that is not ready by then is given up.")
    drain_timeout_s: float = Field(60.0, gt=0, description="An actor taken away may finish its work that long.")


class DeploymentConfig(Section):
    """Everything an operator can set. See `from_sources`."""

    mode: Mode = Field(
        Mode.DISAGGREGATED,
        description="disaggregated: encoders apart. colocated: LLM actors carry the vision tower. "
        "auto: both, chosen for each request.",
    )
    model: ModelSection = ModelSection()
    stages: StagesSection = StagesSection()
    transport: TransportSection = TransportSection()
    limits: LimitsSection = LimitsSection()
    defaults: DefaultsSection = DefaultsSection()
    router: RouterSection = RouterSection()
    fetch: FetchSection = FetchSection()
    security: SecuritySection = SecuritySection()
    control: ControlSection = ControlSection()
    telemetry: TelemetrySection = TelemetrySection()
    scaling: ScalingSection = ScalingSection()

    @model_validator(mode="after")
    def _stages_fit_mode(self) -> DeploymentConfig:
        stages = self.stages
        if self.mode is Mode.COLOCATED:
            if stages.prefill_decode.replicas < 1:
                raise ValueError("mode colocated needs stages.prefill_decode.replicas >= 1")
            return self
        if self.mode is Mode.DISAGGREGATED and stages.encoder.replicas < 1:
            raise ValueError("mode disaggregated needs stages.encoder.replicas >= 1")
        is_split = stages.prefill.replicas >= 1 and stages.decode.replicas >= 1
        if not is_split and stages.prefill_decode.replicas < 1:
            raise ValueError("needs prefill and decode replicas >= 1, or stages.prefill_decode.replicas >= 1")
        if stages.prefill.page_size != stages.decode.page_size:
            raise ValueError(
                f"stages.prefill.page_size={stages.prefill.page_size} and "
                f"stages.decode.page_size={stages.decode.page_size} differ"
            )
        return self

    @classmethod
    def from_sources(
        cls,
        file: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> DeploymentConfig:
        """Merge file, environment and `overrides` (nested, as from the command line).

        Raises ConfigurationError that names each bad key and the layer it came from.

        In mode colocated the replicas of the stages that do not exist there become 0, and prefill_decode gets one
        unless it was set: `mode: colocated` alone is a complete configuration.
        """
        values: dict[str, Any] = {}
        origins: dict[tuple[str, ...], str] = {}
        for name, layer in (
            (f"file {file}", _read_file(file)),
            *_read_environment(os.environ if environment is None else environment),
            ("command line", overrides or {}),
        ):
            values = _merge(values, layer)
            for path, origin in origins_of(layer, name).items():
                origins.pop(path, None)  # The last layer comes last.
                origins[path] = origin
        if values.get("mode") == Mode.COLOCATED:
            values = _merge(_COLOCATED_DEFAULTS, values)
            values = _merge(values, _COLOCATED_FIXED)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise configuration_error(error, cls, origins) from None


_COLOCATED_DEFAULTS: dict[str, Any] = {"stages": {"prefill_decode": {"replicas": 1}}}
_COLOCATED_FIXED: dict[str, Any] = {
    "stages": {"encoder": {"replicas": 0}, "prefill": {"replicas": 0}, "decode": {"replicas": 0}}
}


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"configuration file {file}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"configuration file {file}: expected a mapping at the top, found {type(values).__name__}"
        )
    return values


def _read_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each variable with its name, as a layer."""
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in CLIENT_VARIABLES:
            continue
        *path, leaf = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        try:
            nested: dict[str, Any] = {leaf: yaml.safe_load(text)}
        except yaml.YAMLError as error:
            raise ConfigurationError(f"environment variable {name}={text!r} is no YAML value: {error}") from None
        for part in reversed(path):
            nested = {part: nested}
        yield f"environment variable {name}", nested


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both_nested else value
    return merged
