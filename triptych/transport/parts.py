"""Parts of a ticket: a large tensor leaves in blocks of rows, each under a lease of its own, as soon as it is made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from triptych.errors import InvalidRequest
from triptych.transport.ticket import Ticket

MAX_PARTS = 4_096


@dataclass(frozen=True)
class TicketPart:
    """The rows [first_row, end_row) of a ticket's tensor, and the ticket that names them alone."""

    ticket: Ticket
    first_row: int
    end_row: int


def parts_of(ticket: Ticket) -> tuple[TicketPart, ...]:
    """The parts in order, those of producer and consumer alike; none where the tensor travels as a whole.

    Raises InvalidRequest for more than 4,096 of them.
    """
    num_rows, size = ticket.shape[0], ticket.rows_per_part
    if size == 0 or num_rows <= size:
        return ()
    num_parts = -(-num_rows // size)
    if num_parts > MAX_PARTS:
        raise InvalidRequest(
            f"ticket.rows_per_part={size} makes {num_parts} parts of {num_rows} rows, expected at most {MAX_PARTS} "
            "(transport.kv_part_bytes)",
            field="ticket.rows_per_part",
        )
    return tuple(_part(ticket, index, min((index + 1) * size, num_rows)) for index in range(num_parts))


def _part(ticket: Ticket, index: int, end_row: int) -> TicketPart:
    first_row = index * ticket.rows_per_part
    shape = (end_row - first_row, *ticket.shape[1:])
    return TicketPart(
        replace(ticket, ticket_id=f"{ticket.ticket_id}.{index}", shape=shape, rows_per_part=0), first_row, end_row
    )
