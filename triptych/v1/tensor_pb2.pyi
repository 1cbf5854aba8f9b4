from triptych.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FetchRequest(_message.Message):
    __slots__ = ("ticket_id", "producer_id", "consumer_id", "lane", "first_row")
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_ID_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    ticket_id: str
    producer_id: str
    consumer_id: str
    lane: str
    first_row: int
    def __init__(self, ticket_id: _Optional[str] = ..., producer_id: _Optional[str] = ..., consumer_id: _Optional[str] = ..., lane: _Optional[str] = ..., first_row: _Optional[int] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: TensorHeader
    chunk: TensorChunk
    def __init__(self, header: _Optional[_Union[TensorHeader, _Mapping]] = ..., chunk: _Optional[_Union[TensorChunk, _Mapping]] = ...) -> None: ...

class TensorHeader(_message.Message):
    __slots__ = ("producer_id", "model_fingerprint", "dtype", "shape", "num_bytes", "shared_memory", "prefill", "cuda_memory", "link")
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    CUDA_MEMORY_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    producer_id: str
    model_fingerprint: str
    dtype: _common_pb2.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    num_bytes: int
    shared_memory: SharedMemoryHandle
    prefill: PrefillOutcome
    cuda_memory: CudaMemoryHandle
    link: LinkTransfer
    def __init__(self, producer_id: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., dtype: _Optional[_Union[_common_pb2.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., num_bytes: _Optional[int] = ..., shared_memory: _Optional[_Union[SharedMemoryHandle, _Mapping]] = ..., prefill: _Optional[_Union[PrefillOutcome, _Mapping]] = ..., cuda_memory: _Optional[_Union[CudaMemoryHandle, _Mapping]] = ..., link: _Optional[_Union[LinkTransfer, _Mapping]] = ...) -> None: ...

class PrefillOutcome(_message.Message):
    __slots__ = ("first_token_id", "finish_reason")
    FIRST_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    first_token_id: int
    finish_reason: _common_pb2.FinishReason
    def __init__(self, first_token_id: _Optional[int] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ...) -> None: ...

class SharedMemoryHandle(_message.Message):
    __slots__ = ("name", "offset", "crc32", "stamp", "may_stay")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    MAY_STAY_FIELD_NUMBER: _ClassVar[int]
    name: str
    offset: int
    crc32: int
    stamp: int
    may_stay: bool
    def __init__(self, name: _Optional[str] = ..., offset: _Optional[int] = ..., crc32: _Optional[int] = ..., stamp: _Optional[int] = ..., may_stay: bool = ...) -> None: ...

class CudaMemoryHandle(_message.Message):
    __slots__ = ("handle", "offset", "slab_bytes", "device_id", "crc32", "stamp")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SLAB_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    handle: bytes
    offset: int
    slab_bytes: int
    device_id: str
    crc32: int
    stamp: int
    def __init__(self, handle: _Optional[bytes] = ..., offset: _Optional[int] = ..., slab_bytes: _Optional[int] = ..., device_id: _Optional[str] = ..., crc32: _Optional[int] = ..., stamp: _Optional[int] = ...) -> None: ...

class LinkTransfer(_message.Message):
    __slots__ = ("transfer_id", "crc32")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    crc32: int
    def __init__(self, transfer_id: _Optional[str] = ..., crc32: _Optional[int] = ...) -> None: ...

class OpenLinkRequest(_message.Message):
    __slots__ = ("open", "ready")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    open: LinkOpen
    ready: LinkReady
    def __init__(self, open: _Optional[_Union[LinkOpen, _Mapping]] = ..., ready: _Optional[_Union[LinkReady, _Mapping]] = ...) -> None: ...

class LinkOpen(_message.Message):
    __slots__ = ("lane", "producer_id", "consumer_id", "epoch", "consumer_host")
    LANE_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_HOST_FIELD_NUMBER: _ClassVar[int]
    lane: str
    producer_id: str
    consumer_id: str
    epoch: int
    consumer_host: str
    def __init__(self, lane: _Optional[str] = ..., producer_id: _Optional[str] = ..., consumer_id: _Optional[str] = ..., epoch: _Optional[int] = ..., consumer_host: _Optional[str] = ...) -> None: ...

class LinkReady(_message.Message):
    __slots__ = ("transfer_id", "sequence", "num_bytes")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    sequence: int
    num_bytes: int
    def __init__(self, transfer_id: _Optional[str] = ..., sequence: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class OpenLinkResponse(_message.Message):
    __slots__ = ("meeting", "connected", "posted")
    MEETING_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    POSTED_FIELD_NUMBER: _ClassVar[int]
    meeting: LinkMeeting
    connected: LinkConnected
    posted: LinkPosted
    def __init__(self, meeting: _Optional[_Union[LinkMeeting, _Mapping]] = ..., connected: _Optional[_Union[LinkConnected, _Mapping]] = ..., posted: _Optional[_Union[LinkPosted, _Mapping]] = ...) -> None: ...

class LinkMeeting(_message.Message):
    __slots__ = ("store_port",)
    STORE_PORT_FIELD_NUMBER: _ClassVar[int]
    store_port: int
    def __init__(self, store_port: _Optional[int] = ...) -> None: ...

class LinkConnected(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LinkPosted(_message.Message):
    __slots__ = ("sequence", "is_sending")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    IS_SENDING_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    is_sending: bool
    def __init__(self, sequence: _Optional[int] = ..., is_sending: bool = ...) -> None: ...

class TensorChunk(_message.Message):
    __slots__ = ("offset", "data", "crc32")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    crc32: int
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("ticket_ids",)
    TICKET_IDS_FIELD_NUMBER: _ClassVar[int]
    ticket_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ticket_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("ticket_ids",)
    TICKET_IDS_FIELD_NUMBER: _ClassVar[int]
    ticket_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ticket_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("unknown_ticket_ids",)
    UNKNOWN_TICKET_IDS_FIELD_NUMBER: _ClassVar[int]
    unknown_ticket_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, unknown_ticket_ids: _Optional[_Iterable[str]] = ...) -> None: ...
