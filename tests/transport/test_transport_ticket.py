"""Tickets on the wire: nothing is lost, and nothing absurd gets in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import InvalidRequest
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.transport.ticket import TensorSpec, Ticket
from triptych.v1 import common_pb2

TICKET = Ticket(
    ticket_id="t-1",
    producer_id="encoder-1",
    producer_endpoint="127.0.0.1:5",
    producer_host_id="host",
    model_fingerprint="weights",
    dtype=torch.bfloat16,
    shape=(12, 64),
    lanes=("shm", "grpc"),
    content_key="key",
    grid=Grid(2, 4, 6),
    second_per_grid_t=0.4,
    lease_deadline_s=1.5,
    device_id="GPU-1",
    rows_per_part=3,
    layers_per_part=2,
)


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    shape=st.lists(st.integers(0, 1000), min_size=1, max_size=4).map(tuple),
    grid=st.none() | st.builds(Grid, st.integers(1, 9), st.integers(1, 99), st.integers(1, 99)),
)
def test_round_trip(dtype: torch.dtype, shape: tuple[int, ...], grid: Grid | None) -> None:
    if TensorSpec(dtype, shape).num_bytes > 1 << 40:
        return
    ticket = replace(TICKET, dtype=dtype, shape=shape, grid=grid)
    assert Ticket.from_proto(common_pb2.Ticket.FromString(ticket.to_proto().SerializeToString())) == ticket


def test_every_field_of_the_message_is_carried() -> None:
    assert {field.name for field, _ in TICKET.to_proto().ListFields()} == {
        field.name for field in common_pb2.Ticket.DESCRIPTOR.fields
    }


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"ticket_id": ""}, "ticket.ticket_id"),
        ({"ticket_id": "x" * 129}, "ticket.ticket_id"),
        ({"producer_id": "a/../b"}, "ticket.producer_id"),
        ({"producer_endpoint": ""}, "ticket.producer_endpoint"),
        ({"dtype": 0}, "dtype"),
        ({"dtype": 77}, "dtype"),
        ({"shape": []}, "ticket.shape"),
        ({"shape": [1] * 9}, "ticket.shape"),
        ({"shape": [1 << 40, 1 << 40]}, "ticket.shape"),
        ({"shape": [0, 1 << 60]}, "ticket.shape"),
        ({"lanes": ["grpc"] * 17}, "ticket.lanes"),
    ],
)
def test_a_bad_ticket_names_its_field(changes: dict[str, object], field: str) -> None:
    message = TICKET.to_proto()
    for name, value in changes.items():
        message.ClearField(name)
        message.MergeFrom(common_pb2.Ticket(**{name: value}))
    with pytest.raises(InvalidRequest) as caught:
        Ticket.from_proto(message)
    assert caught.value.field == field


def test_specs_say_what_they_are() -> None:
    spec = TensorSpec(torch.bfloat16, (10, 4))
    assert str(spec) == "bfloat16[10, 4]" and spec.num_bytes == 80
    assert spec.from_row(10).shape == (0, 4)
    for row in (-1, 11):
        with pytest.raises(InvalidRequest):
            spec.from_row(row)
    with pytest.raises(InvalidRequest, match="int64"):
        replace(TICKET, dtype=torch.int64).to_proto()
