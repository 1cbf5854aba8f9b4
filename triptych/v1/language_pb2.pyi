from triptych.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Prompt(_message.Message):
    __slots__ = ("token_ids", "media", "num_generated_tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    media: _containers.RepeatedCompositeFieldContainer[MediaPlacement]
    num_generated_tokens: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., media: _Optional[_Iterable[_Union[MediaPlacement, _Mapping]]] = ..., num_generated_tokens: _Optional[int] = ...) -> None: ...

class MediaPlacement(_message.Message):
    __slots__ = ("offset", "length", "kind", "grid", "second_per_grid_t", "content_key", "ticket", "media")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    SECOND_PER_GRID_T_FIELD_NUMBER: _ClassVar[int]
    CONTENT_KEY_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    length: int
    kind: _common_pb2.MediaKind
    grid: _common_pb2.Grid
    second_per_grid_t: float
    content_key: str
    ticket: _common_pb2.Ticket
    media: _common_pb2.Media
    def __init__(self, offset: _Optional[int] = ..., length: _Optional[int] = ..., kind: _Optional[_Union[_common_pb2.MediaKind, str]] = ..., grid: _Optional[_Union[_common_pb2.Grid, _Mapping]] = ..., second_per_grid_t: _Optional[float] = ..., content_key: _Optional[str] = ..., ticket: _Optional[_Union[_common_pb2.Ticket, _Mapping]] = ..., media: _Optional[_Union[_common_pb2.Media, _Mapping]] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("request_id", "prompt", "sampling", "kv_ticket")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    KV_TICKET_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt: Prompt
    sampling: _common_pb2.SamplingParameters
    kv_ticket: _common_pb2.Ticket
    def __init__(self, request_id: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParameters, _Mapping]] = ..., kv_ticket: _Optional[_Union[_common_pb2.Ticket, _Mapping]] = ...) -> None: ...

class PrefillResponse(_message.Message):
    __slots__ = ("first_token_id", "finish_reason", "cached_prompt_tokens", "embedding_transfer_s", "embedding_lanes", "queue_s", "prefill_s", "encode_queue_s", "encode_s", "first_token_logprob")
    FIRST_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_LANES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    ENCODE_QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    ENCODE_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    first_token_id: int
    finish_reason: _common_pb2.FinishReason
    cached_prompt_tokens: int
    embedding_transfer_s: float
    embedding_lanes: _containers.RepeatedScalarFieldContainer[str]
    queue_s: float
    prefill_s: float
    encode_queue_s: float
    encode_s: float
    first_token_logprob: _common_pb2.TokenLogprob
    def __init__(self, first_token_id: _Optional[int] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., cached_prompt_tokens: _Optional[int] = ..., embedding_transfer_s: _Optional[float] = ..., embedding_lanes: _Optional[_Iterable[str]] = ..., queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., encode_queue_s: _Optional[float] = ..., encode_s: _Optional[float] = ..., first_token_logprob: _Optional[_Union[_common_pb2.TokenLogprob, _Mapping]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("request_id", "router_id", "prompt", "sampling", "kv_ticket")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    KV_TICKET_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    router_id: str
    prompt: Prompt
    sampling: _common_pb2.SamplingParameters
    kv_ticket: _common_pb2.Ticket
    def __init__(self, request_id: _Optional[str] = ..., router_id: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParameters, _Mapping]] = ..., kv_ticket: _Optional[_Union[_common_pb2.Ticket, _Mapping]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("finish_reason", "num_tokens", "prefill", "kv_transfer_s", "kv_lane", "decode_s", "num_preemptions")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    KV_LANE_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    finish_reason: _common_pb2.FinishReason
    num_tokens: int
    prefill: PrefillResponse
    kv_transfer_s: float
    kv_lane: str
    decode_s: float
    num_preemptions: int
    def __init__(self, finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., num_tokens: _Optional[int] = ..., prefill: _Optional[_Union[PrefillResponse, _Mapping]] = ..., kv_transfer_s: _Optional[float] = ..., kv_lane: _Optional[str] = ..., decode_s: _Optional[float] = ..., num_preemptions: _Optional[int] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_ids", "choices")
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    choices: _containers.RepeatedCompositeFieldContainer[ChoiceOfRequest]
    def __init__(self, request_ids: _Optional[_Iterable[str]] = ..., choices: _Optional[_Iterable[_Union[ChoiceOfRequest, _Mapping]]] = ...) -> None: ...

class ChoiceOfRequest(_message.Message):
    __slots__ = ("request_id", "choice_index")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    choice_index: int
    def __init__(self, request_id: _Optional[str] = ..., choice_index: _Optional[int] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamStepsRequest(_message.Message):
    __slots__ = ("router_id",)
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    def __init__(self, router_id: _Optional[str] = ...) -> None: ...

class StreamStepsResponse(_message.Message):
    __slots__ = ("outputs",)
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[SequenceOutput]
    def __init__(self, outputs: _Optional[_Iterable[_Union[SequenceOutput, _Mapping]]] = ...) -> None: ...

class SequenceOutput(_message.Message):
    __slots__ = ("request_id", "token_ids", "finish_reason", "choice_index", "logprobs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: _common_pb2.FinishReason
    choice_index: int
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprob]
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., choice_index: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprob, _Mapping]]] = ...) -> None: ...
