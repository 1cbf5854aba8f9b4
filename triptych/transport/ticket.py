"""Ticket: the name of a tensor before it exists. The router writes it, producer and consumer check against it."""

from __future__ import annotations

import math
import re
import uuid
from dataclasses import dataclass
from types import MappingProxyType

import torch

from triptych.errors import InvalidRequest
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.v1 import common_pb2

DATA_TYPES = MappingProxyType(
    {
        torch.float32: common_pb2.DATA_TYPE_FLOAT32,
        torch.bfloat16: common_pb2.DATA_TYPE_BFLOAT16,
        torch.float16: common_pb2.DATA_TYPE_FLOAT16,
    }
)
TORCH_DTYPES: MappingProxyType[int, torch.dtype] = MappingProxyType(
    {number: dtype for dtype, number in DATA_TYPES.items()}
)

MAX_ID_LENGTH = 128
MAX_DIMENSIONS = 8
MAX_TENSOR_BYTES = 1 << 40
MAX_LANES = 16

# Host names, IPv4, and IPv6 in brackets.
_ENDPOINT = re.compile(r"(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.%]{2,64}\]):[0-9]{1,5}")
_ID = re.compile(rf"[A-Za-z0-9_.:-]{{1,{MAX_ID_LENGTH}}}")


def new_id() -> str:
    """A fresh random id (32 hex digits) for a ticket or a request."""
    return uuid.uuid4().hex


def dtype_to_proto(dtype: torch.dtype) -> common_pb2.DataType:
    """Raises InvalidRequest for a dtype that can't travel."""
    if dtype not in DATA_TYPES:
        raise InvalidRequest(f"dtype {dtype} can't travel; expected one of {_names(DATA_TYPES)}", field="dtype")
    return DATA_TYPES[dtype]


def dtype_from_proto(number: int) -> torch.dtype:
    """Raises InvalidRequest for an unknown or unset number."""
    dtype = TORCH_DTYPES.get(number)
    if dtype is None:
        raise InvalidRequest(f"data type {number} is unknown; expected one of {_names(DATA_TYPES)}", field="dtype")
    return dtype


@dataclass(frozen=True)
class TensorSpec:
    """dtype and shape of a dense row-major tensor; rows are its first dimension."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def num_rows(self) -> int:
        return self.shape[0]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def from_row(self, first_row: int) -> TensorSpec:
        """What remains when rows before `first_row` are left out. Raises InvalidRequest outside 0..num_rows."""
        if not 0 <= first_row <= self.num_rows:
            raise InvalidRequest(
                f"first_row={first_row} is outside a tensor of {self.num_rows} rows", field="first_row"
            )
        return TensorSpec(self.dtype, (self.num_rows - first_row, *self.shape[1:]))

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True)
class Ticket:
    """The fields of the message `Ticket` in protos/triptych/v1/common.proto, in the types of this process."""

    ticket_id: str
    producer_id: str
    producer_endpoint: str
    producer_host_id: str
    model_fingerprint: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    lanes: tuple[str, ...]
    content_key: str = ""
    grid: Grid | None = None
    second_per_grid_t: float = 0.0
    lease_deadline_s: float = 0.0
    device_id: str = ""
    rows_per_part: int = 0
    layers_per_part: int = 0

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)

    def to_proto(self) -> common_pb2.Ticket:
        grid = None if self.grid is None else common_pb2.Grid(t=self.grid.t, h=self.grid.h, w=self.grid.w)
        return common_pb2.Ticket(
            ticket_id=self.ticket_id,
            content_key=self.content_key,
            producer_id=self.producer_id,
            producer_endpoint=self.producer_endpoint,
            producer_host_id=self.producer_host_id,
            model_fingerprint=self.model_fingerprint,
            dtype=dtype_to_proto(self.dtype),
            shape=self.shape,
            grid=grid,
            second_per_grid_t=self.second_per_grid_t,
            lanes=self.lanes,
            lease_deadline_s=self.lease_deadline_s,
            device_id=self.device_id,
            rows_per_part=self.rows_per_part,
            layers_per_part=self.layers_per_part,
        )

    @classmethod
    def from_proto(cls, message: common_pb2.Ticket) -> Ticket:
        """Raises InvalidRequest, naming the field, when the message can't be the name of a tensor."""
        check_id(message.ticket_id, "ticket.ticket_id")
        check_id(message.producer_id, "ticket.producer_id")
        if not _ENDPOINT.fullmatch(message.producer_endpoint):
            raise InvalidRequest(
                f"ticket.producer_endpoint={message.producer_endpoint[:MAX_ID_LENGTH]!r}: expected host:port",
                field="ticket.producer_endpoint",
            )
        if len(message.lanes) > MAX_LANES:
            raise InvalidRequest(
                f"ticket.lanes has {len(message.lanes)} names; at most {MAX_LANES}", field="ticket.lanes"
            )
        spec = spec_from_proto(message.dtype, tuple(message.shape), "ticket")
        grid = Grid(message.grid.t, message.grid.h, message.grid.w) if message.HasField("grid") else None
        return cls(
            ticket_id=message.ticket_id,
            producer_id=message.producer_id,
            producer_endpoint=message.producer_endpoint,
            producer_host_id=message.producer_host_id,
            model_fingerprint=message.model_fingerprint,
            dtype=spec.dtype,
            shape=spec.shape,
            lanes=tuple(message.lanes),
            content_key=message.content_key,
            grid=grid,
            second_per_grid_t=message.second_per_grid_t,
            lease_deadline_s=message.lease_deadline_s,
            device_id=message.device_id,
            rows_per_part=message.rows_per_part,
            layers_per_part=message.layers_per_part,
        )


def spec_from_proto(dtype: int, shape: tuple[int, ...], where: str) -> TensorSpec:
    """A TensorSpec within bounds: 1 to 8 dimensions, at most 1 TiB. Raises InvalidRequest naming `where`."""
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise InvalidRequest(
            f"{where}.shape has {len(shape)} dimensions; expected 1 to {MAX_DIMENSIONS}", field=f"{where}.shape"
        )
    spec = TensorSpec(dtype_from_proto(dtype), shape)
    # Dimensions are bounded one by one too: a zero among them would hide an absurd one.
    if max(shape) > MAX_TENSOR_BYTES or spec.num_bytes > MAX_TENSOR_BYTES:
        raise InvalidRequest(f"{where}.shape={list(shape)} is over {MAX_TENSOR_BYTES} bytes", field=f"{where}.shape")
    return spec


def check_id(value: str, field: str) -> None:
    """Raises InvalidRequest unless `value` is 1 to 128 letters, digits and '_.:-'."""
    if not _ID.fullmatch(value):
        raise InvalidRequest(
            f"{field}={value[:MAX_ID_LENGTH]!r}: expected 1 to {MAX_ID_LENGTH} of A-Za-z0-9_.:-", field=field
        )


def _names(dtypes: MappingProxyType[torch.dtype, common_pb2.DataType]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
