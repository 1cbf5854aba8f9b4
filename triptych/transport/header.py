"""TensorHeader: what a producer says of a tensor ahead of its bytes, and the consumer's check against the ticket."""

from __future__ import annotations

import torch

from triptych.errors import FailedPrecondition, IntegrityError, InvalidRequest, Unavailable
from triptych.transport.lease_entry import Lease
from triptych.transport.ticket import TensorSpec, Ticket, dtype_to_proto, spec_from_proto
from triptych.v1.tensor_pb2 import TensorHeader


def make_header(lease: Lease, rows: torch.Tensor, producer_id: str, model_fingerprint: str) -> TensorHeader:
    """Header of `rows` of `lease`, without any lane's part."""
    return TensorHeader(
        producer_id=producer_id,
        model_fingerprint=model_fingerprint,
        dtype=dtype_to_proto(rows.dtype),
        shape=tuple(rows.shape),
        num_bytes=rows.nbytes,
        prefill=lease.outcome,
    )


def check_header(header: TensorHeader, ticket: Ticket, expected: TensorSpec) -> None:
    """Hold a header against its ticket, before any memory is taken for what follows.

    Raises Unavailable when another incarnation answered, FailedPrecondition for other weights, IntegrityError for
    another dtype, shape or length.
    """
    if header.producer_id != ticket.producer_id:
        raise Unavailable(
            f"{ticket.producer_endpoint} is now {header.producer_id!r}, the ticket names {ticket.producer_id!r}: "
            "the actor was replaced"
        )
    check_fingerprint(header.model_fingerprint, ticket.model_fingerprint, f"tensor of ticket {ticket.ticket_id}")
    try:
        actual = spec_from_proto(header.dtype, tuple(header.shape), "header")
    except InvalidRequest as error:
        raise IntegrityError(f"ticket {ticket.ticket_id}: {error.message}", field=error.field) from None
    check_spec(actual, expected, ticket)
    if header.num_bytes != expected.num_bytes:
        raise IntegrityError(
            f"ticket {ticket.ticket_id}: length {header.num_bytes} bytes, expected {expected.num_bytes} of {expected}",
            field="num_bytes",
        )


def check_spec(actual: TensorSpec, expected: TensorSpec, ticket: Ticket) -> None:
    """Raises IntegrityError naming what differs: dtype or shape."""
    if actual.dtype != expected.dtype:
        raise IntegrityError(
            f"ticket {ticket.ticket_id}: dtype {actual} of {ticket.producer_id}, expected {expected}", field="dtype"
        )
    if actual.shape != expected.shape:
        raise IntegrityError(
            f"ticket {ticket.ticket_id}: shape {actual} of {ticket.producer_id}, expected {expected}", field="shape"
        )


def check_fingerprint(actual: str, expected: str, what: str) -> None:
    """Raises FailedPrecondition when two checkpoints differ."""
    if actual != expected:
        raise FailedPrecondition(
            f"{what}: weights {actual!r}, expected {expected!r}; all actors must load one checkpoint (model.path)",
            field="model_fingerprint",
        )
