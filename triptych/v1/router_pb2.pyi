from triptych.v1 import admin_pb2 as _admin_pb2
from triptych.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("actors", "is_serving", "stages")
    ACTORS_FIELD_NUMBER: _ClassVar[int]
    IS_SERVING_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    actors: _containers.RepeatedCompositeFieldContainer[_admin_pb2.ActorInfo]
    is_serving: bool
    stages: _containers.RepeatedCompositeFieldContainer[StageView]
    def __init__(self, actors: _Optional[_Iterable[_Union[_admin_pb2.ActorInfo, _Mapping]]] = ..., is_serving: bool = ..., stages: _Optional[_Iterable[_Union[StageView, _Mapping]]] = ...) -> None: ...

class StageView(_message.Message):
    __slots__ = ("status", "is_pinned", "start_s", "start_failure", "is_hopeless")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    IS_PINNED_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    START_FAILURE_FIELD_NUMBER: _ClassVar[int]
    IS_HOPELESS_FIELD_NUMBER: _ClassVar[int]
    status: _admin_pb2.StageStatus
    is_pinned: bool
    start_s: float
    start_failure: str
    is_hopeless: bool
    def __init__(self, status: _Optional[_Union[_admin_pb2.StageStatus, _Mapping]] = ..., is_pinned: bool = ..., start_s: _Optional[float] = ..., start_failure: _Optional[str] = ..., is_hopeless: bool = ...) -> None: ...

class SetWantedRequest(_message.Message):
    __slots__ = ("stage", "num_actors")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_ACTORS_FIELD_NUMBER: _ClassVar[int]
    stage: _common_pb2.Stage
    num_actors: int
    def __init__(self, stage: _Optional[_Union[_common_pb2.Stage, str]] = ..., num_actors: _Optional[int] = ...) -> None: ...

class SetWantedResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportLostRequest(_message.Message):
    __slots__ = ("actor_id",)
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    def __init__(self, actor_id: _Optional[str] = ...) -> None: ...

class ReportLostResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetMetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetMetricsResponse(_message.Message):
    __slots__ = ("page",)
    PAGE_FIELD_NUMBER: _ClassVar[int]
    page: bytes
    def __init__(self, page: _Optional[bytes] = ...) -> None: ...
