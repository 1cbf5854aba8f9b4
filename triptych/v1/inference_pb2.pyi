from triptych.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "model", "messages", "sampling")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    sampling: _common_pb2.SamplingParameters
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParameters, _Mapping]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "parts")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    role: str
    parts: _containers.RepeatedCompositeFieldContainer[ContentPart]
    def __init__(self, role: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[ContentPart, _Mapping]]] = ...) -> None: ...

class ContentPart(_message.Message):
    __slots__ = ("text", "image", "video")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    VIDEO_FIELD_NUMBER: _ClassVar[int]
    text: str
    image: Image
    video: Video
    def __init__(self, text: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., video: _Optional[_Union[Video, _Mapping]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Video(_message.Message):
    __slots__ = ("data", "frames")
    DATA_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    frames: _common_pb2.VideoFrames
    def __init__(self, data: _Optional[bytes] = ..., frames: _Optional[_Union[_common_pb2.VideoFrames, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("chunk", "summary")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    chunk: TokenChunk
    summary: GenerateSummary
    def __init__(self, chunk: _Optional[_Union[TokenChunk, _Mapping]] = ..., summary: _Optional[_Union[GenerateSummary, _Mapping]] = ...) -> None: ...

class TokenChunk(_message.Message):
    __slots__ = ("text", "token_ids", "choice_index", "logprobs", "finish_reason")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    choice_index: int
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprob]
    finish_reason: _common_pb2.FinishReason
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., choice_index: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprob, _Mapping]]] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ...) -> None: ...

class GenerateSummary(_message.Message):
    __slots__ = ("request_id", "model", "finish_reason", "usage", "timings", "route", "choices")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    finish_reason: _common_pb2.FinishReason
    usage: _common_pb2.Usage
    timings: Timings
    route: Route
    choices: _containers.RepeatedCompositeFieldContainer[ChoiceSummary]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., route: _Optional[_Union[Route, _Mapping]] = ..., choices: _Optional[_Iterable[_Union[ChoiceSummary, _Mapping]]] = ...) -> None: ...

class ChoiceSummary(_message.Message):
    __slots__ = ("choice_index", "finish_reason", "completion_tokens")
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    choice_index: int
    finish_reason: _common_pb2.FinishReason
    completion_tokens: int
    def __init__(self, choice_index: _Optional[int] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("total_s", "time_to_first_token_s", "prepare_s", "encode_queue_s", "encode_s", "embedding_transfer_s", "prefill_queue_s", "prefill_s", "kv_transfer_s", "decode_s", "admission_s")
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    PREPARE_S_FIELD_NUMBER: _ClassVar[int]
    ENCODE_QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    ENCODE_S_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_S_FIELD_NUMBER: _ClassVar[int]
    total_s: float
    time_to_first_token_s: float
    prepare_s: float
    encode_queue_s: float
    encode_s: float
    embedding_transfer_s: float
    prefill_queue_s: float
    prefill_s: float
    kv_transfer_s: float
    decode_s: float
    admission_s: float
    def __init__(self, total_s: _Optional[float] = ..., time_to_first_token_s: _Optional[float] = ..., prepare_s: _Optional[float] = ..., encode_queue_s: _Optional[float] = ..., encode_s: _Optional[float] = ..., embedding_transfer_s: _Optional[float] = ..., prefill_queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., kv_transfer_s: _Optional[float] = ..., decode_s: _Optional[float] = ..., admission_s: _Optional[float] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("encoder_actors", "prefill_actor", "decode_actor", "embedding_lanes", "kv_lane", "attempts", "encode_reason")
    ENCODER_ACTORS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_ACTOR_FIELD_NUMBER: _ClassVar[int]
    DECODE_ACTOR_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_LANES_FIELD_NUMBER: _ClassVar[int]
    KV_LANE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_REASON_FIELD_NUMBER: _ClassVar[int]
    encoder_actors: _containers.RepeatedScalarFieldContainer[str]
    prefill_actor: str
    decode_actor: str
    embedding_lanes: _containers.RepeatedScalarFieldContainer[str]
    kv_lane: str
    attempts: int
    encode_reason: str
    def __init__(self, encoder_actors: _Optional[_Iterable[str]] = ..., prefill_actor: _Optional[str] = ..., decode_actor: _Optional[str] = ..., embedding_lanes: _Optional[_Iterable[str]] = ..., kv_lane: _Optional[str] = ..., attempts: _Optional[int] = ..., encode_reason: _Optional[str] = ...) -> None: ...
