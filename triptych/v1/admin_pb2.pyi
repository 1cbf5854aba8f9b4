from triptych.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ActorState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTOR_STATE_UNSPECIFIED: _ClassVar[ActorState]
    ACTOR_STATE_STARTING: _ClassVar[ActorState]
    ACTOR_STATE_READY: _ClassVar[ActorState]
    ACTOR_STATE_DRAINING: _ClassVar[ActorState]
    ACTOR_STATE_LOST: _ClassVar[ActorState]
ACTOR_STATE_UNSPECIFIED: ActorState
ACTOR_STATE_STARTING: ActorState
ACTOR_STATE_READY: ActorState
ACTOR_STATE_DRAINING: ActorState
ACTOR_STATE_LOST: ActorState

class GetTopologyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTopologyResponse(_message.Message):
    __slots__ = ("mode", "model", "stages", "router")
    MODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    mode: str
    model: str
    stages: _containers.RepeatedCompositeFieldContainer[StageStatus]
    router: RouterCounters
    def __init__(self, mode: _Optional[str] = ..., model: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StageStatus, _Mapping]]] = ..., router: _Optional[_Union[RouterCounters, _Mapping]] = ...) -> None: ...

class RouterCounters(_message.Message):
    __slots__ = ("running_requests", "waiting_requests", "answered_requests", "failed_requests", "generated_tokens", "time_to_first_token", "time_per_output_token")
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_PER_OUTPUT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    running_requests: int
    waiting_requests: int
    answered_requests: int
    failed_requests: int
    generated_tokens: int
    time_to_first_token: Histogram
    time_per_output_token: Histogram
    def __init__(self, running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., answered_requests: _Optional[int] = ..., failed_requests: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., time_to_first_token: _Optional[_Union[Histogram, _Mapping]] = ..., time_per_output_token: _Optional[_Union[Histogram, _Mapping]] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("upper_bounds_s", "counts")
    UPPER_BOUNDS_S_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    upper_bounds_s: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, upper_bounds_s: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class StageStatus(_message.Message):
    __slots__ = ("stage", "wanted_actors", "actors", "obstacle")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    WANTED_ACTORS_FIELD_NUMBER: _ClassVar[int]
    ACTORS_FIELD_NUMBER: _ClassVar[int]
    OBSTACLE_FIELD_NUMBER: _ClassVar[int]
    stage: _common_pb2.Stage
    wanted_actors: int
    actors: _containers.RepeatedCompositeFieldContainer[ActorStatus]
    obstacle: str
    def __init__(self, stage: _Optional[_Union[_common_pb2.Stage, str]] = ..., wanted_actors: _Optional[int] = ..., actors: _Optional[_Iterable[_Union[ActorStatus, _Mapping]]] = ..., obstacle: _Optional[str] = ...) -> None: ...

class ActorStatus(_message.Message):
    __slots__ = ("actor_id", "endpoint", "state")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    endpoint: str
    state: ActorState
    def __init__(self, actor_id: _Optional[str] = ..., endpoint: _Optional[str] = ..., state: _Optional[_Union[ActorState, str]] = ...) -> None: ...

class GetActorInfoRequest(_message.Message):
    __slots__ = ("actor_id",)
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    def __init__(self, actor_id: _Optional[str] = ...) -> None: ...

class GetActorInfoResponse(_message.Message):
    __slots__ = ("info",)
    INFO_FIELD_NUMBER: _ClassVar[int]
    info: ActorInfo
    def __init__(self, info: _Optional[_Union[ActorInfo, _Mapping]] = ...) -> None: ...

class ActorInfo(_message.Message):
    __slots__ = ("actor_id", "stage", "endpoint", "host_id", "process_id", "model_fingerprint", "dtype", "lanes", "multimodal_disaggregated", "weights", "encoder", "language", "leases", "state", "ranks", "device_id", "lane_counters")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    PROCESS_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    MULTIMODAL_DISAGGREGATED_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    LANE_COUNTERS_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    stage: _common_pb2.Stage
    endpoint: str
    host_id: str
    process_id: int
    model_fingerprint: str
    dtype: _common_pb2.DataType
    lanes: _containers.RepeatedScalarFieldContainer[str]
    multimodal_disaggregated: bool
    weights: Weights
    encoder: EncoderCounters
    language: LanguageCounters
    leases: LeaseCounters
    state: ActorState
    ranks: _containers.RepeatedCompositeFieldContainer[RankInfo]
    device_id: str
    lane_counters: _containers.RepeatedCompositeFieldContainer[LaneCounters]
    def __init__(self, actor_id: _Optional[str] = ..., stage: _Optional[_Union[_common_pb2.Stage, str]] = ..., endpoint: _Optional[str] = ..., host_id: _Optional[str] = ..., process_id: _Optional[int] = ..., model_fingerprint: _Optional[str] = ..., dtype: _Optional[_Union[_common_pb2.DataType, str]] = ..., lanes: _Optional[_Iterable[str]] = ..., multimodal_disaggregated: bool = ..., weights: _Optional[_Union[Weights, _Mapping]] = ..., encoder: _Optional[_Union[EncoderCounters, _Mapping]] = ..., language: _Optional[_Union[LanguageCounters, _Mapping]] = ..., leases: _Optional[_Union[LeaseCounters, _Mapping]] = ..., state: _Optional[_Union[ActorState, str]] = ..., ranks: _Optional[_Iterable[_Union[RankInfo, _Mapping]]] = ..., device_id: _Optional[str] = ..., lane_counters: _Optional[_Iterable[_Union[LaneCounters, _Mapping]]] = ...) -> None: ...

class LaneCounters(_message.Message):
    __slots__ = ("lane", "num_transfers", "num_bytes", "seconds", "num_failures")
    LANE_FIELD_NUMBER: _ClassVar[int]
    NUM_TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILURES_FIELD_NUMBER: _ClassVar[int]
    lane: str
    num_transfers: int
    num_bytes: int
    seconds: float
    num_failures: int
    def __init__(self, lane: _Optional[str] = ..., num_transfers: _Optional[int] = ..., num_bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., num_failures: _Optional[int] = ...) -> None: ...

class RankInfo(_message.Message):
    __slots__ = ("rank", "process_id", "host_id", "weights")
    RANK_FIELD_NUMBER: _ClassVar[int]
    PROCESS_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    process_id: int
    host_id: str
    weights: Weights
    def __init__(self, rank: _Optional[int] = ..., process_id: _Optional[int] = ..., host_id: _Optional[str] = ..., weights: _Optional[_Union[Weights, _Mapping]] = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("num_visual_parameters", "num_language_parameters", "num_bytes")
    NUM_VISUAL_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    NUM_LANGUAGE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_visual_parameters: int
    num_language_parameters: int
    num_bytes: int
    def __init__(self, num_visual_parameters: _Optional[int] = ..., num_language_parameters: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class EncoderCounters(_message.Message):
    __slots__ = ("accepted_items", "rejected_items", "encoded_items", "encoded_patches", "num_batches", "pending_patches", "max_pending_patches", "cache_hits", "cache_items", "cache_bytes", "device_cache_hits", "host_cache_hits", "host_cache_items", "host_cache_bytes", "expired_items", "activation_bytes", "max_activation_bytes")
    ACCEPTED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ENCODED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ENCODED_PATCHES_FIELD_NUMBER: _ClassVar[int]
    NUM_BATCHES_FIELD_NUMBER: _ClassVar[int]
    PENDING_PATCHES_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_PATCHES_FIELD_NUMBER: _ClassVar[int]
    CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    CACHE_ITEMS_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    HOST_CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    HOST_CACHE_ITEMS_FIELD_NUMBER: _ClassVar[int]
    HOST_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ACTIVATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    accepted_items: int
    rejected_items: int
    encoded_items: int
    encoded_patches: int
    num_batches: int
    pending_patches: int
    max_pending_patches: int
    cache_hits: int
    cache_items: int
    cache_bytes: int
    device_cache_hits: int
    host_cache_hits: int
    host_cache_items: int
    host_cache_bytes: int
    expired_items: int
    activation_bytes: int
    max_activation_bytes: int
    def __init__(self, accepted_items: _Optional[int] = ..., rejected_items: _Optional[int] = ..., encoded_items: _Optional[int] = ..., encoded_patches: _Optional[int] = ..., num_batches: _Optional[int] = ..., pending_patches: _Optional[int] = ..., max_pending_patches: _Optional[int] = ..., cache_hits: _Optional[int] = ..., cache_items: _Optional[int] = ..., cache_bytes: _Optional[int] = ..., device_cache_hits: _Optional[int] = ..., host_cache_hits: _Optional[int] = ..., host_cache_items: _Optional[int] = ..., host_cache_bytes: _Optional[int] = ..., expired_items: _Optional[int] = ..., activation_bytes: _Optional[int] = ..., max_activation_bytes: _Optional[int] = ...) -> None: ...

class LanguageCounters(_message.Message):
    __slots__ = ("waiting_requests", "running_requests", "finished_requests", "num_steps", "num_preemptions", "total_pages", "held_pages", "cached_pages", "prompt_tokens", "cached_prompt_tokens", "generated_tokens", "page_size", "accepted_embeddings")
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_PAGES_FIELD_NUMBER: _ClassVar[int]
    HELD_PAGES_FIELD_NUMBER: _ClassVar[int]
    CACHED_PAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    waiting_requests: int
    running_requests: int
    finished_requests: int
    num_steps: int
    num_preemptions: int
    total_pages: int
    held_pages: int
    cached_pages: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    page_size: int
    accepted_embeddings: int
    def __init__(self, waiting_requests: _Optional[int] = ..., running_requests: _Optional[int] = ..., finished_requests: _Optional[int] = ..., num_steps: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., total_pages: _Optional[int] = ..., held_pages: _Optional[int] = ..., cached_pages: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., page_size: _Optional[int] = ..., accepted_embeddings: _Optional[int] = ...) -> None: ...

class LeaseCounters(_message.Message):
    __slots__ = ("held_leases", "held_bytes", "granted_leases", "expired_leases", "pending_tickets")
    HELD_LEASES_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    GRANTED_LEASES_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_LEASES_FIELD_NUMBER: _ClassVar[int]
    PENDING_TICKETS_FIELD_NUMBER: _ClassVar[int]
    held_leases: int
    held_bytes: int
    granted_leases: int
    expired_leases: int
    pending_tickets: int
    def __init__(self, held_leases: _Optional[int] = ..., held_bytes: _Optional[int] = ..., granted_leases: _Optional[int] = ..., expired_leases: _Optional[int] = ..., pending_tickets: _Optional[int] = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("stage", "num_actors", "wait", "automatic")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_ACTORS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    AUTOMATIC_FIELD_NUMBER: _ClassVar[int]
    stage: _common_pb2.Stage
    num_actors: int
    wait: bool
    automatic: bool
    def __init__(self, stage: _Optional[_Union[_common_pb2.Stage, str]] = ..., num_actors: _Optional[int] = ..., wait: bool = ..., automatic: bool = ...) -> None: ...

class ScaleResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: StageStatus
    def __init__(self, status: _Optional[_Union[StageStatus, _Mapping]] = ...) -> None: ...

class MoveActorRequest(_message.Message):
    __slots__ = ("from_stage", "to_stage", "actor_id", "is_automatic")
    FROM_STAGE_FIELD_NUMBER: _ClassVar[int]
    TO_STAGE_FIELD_NUMBER: _ClassVar[int]
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    IS_AUTOMATIC_FIELD_NUMBER: _ClassVar[int]
    from_stage: _common_pb2.Stage
    to_stage: _common_pb2.Stage
    actor_id: str
    is_automatic: bool
    def __init__(self, from_stage: _Optional[_Union[_common_pb2.Stage, str]] = ..., to_stage: _Optional[_Union[_common_pb2.Stage, str]] = ..., actor_id: _Optional[str] = ..., is_automatic: bool = ...) -> None: ...

class MoveActorResponse(_message.Message):
    __slots__ = ("actor_id", "stages", "seconds")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    stages: _containers.RepeatedCompositeFieldContainer[StageStatus]
    seconds: float
    def __init__(self, actor_id: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StageStatus, _Mapping]]] = ..., seconds: _Optional[float] = ...) -> None: ...

class SetRoleRequest(_message.Message):
    __slots__ = ("stage", "drain_s")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_S_FIELD_NUMBER: _ClassVar[int]
    stage: _common_pb2.Stage
    drain_s: float
    def __init__(self, stage: _Optional[_Union[_common_pb2.Stage, str]] = ..., drain_s: _Optional[float] = ...) -> None: ...

class SetRoleResponse(_message.Message):
    __slots__ = ("info", "remaining_requests")
    INFO_FIELD_NUMBER: _ClassVar[int]
    REMAINING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    info: ActorInfo
    remaining_requests: int
    def __init__(self, info: _Optional[_Union[ActorInfo, _Mapping]] = ..., remaining_requests: _Optional[int] = ...) -> None: ...
