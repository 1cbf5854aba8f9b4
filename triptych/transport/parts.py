"""Parts of a ticket: a large tensor leaves in blocks of rows and groups of layers, each as soon as it is made,
and under a lease of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from triptych.errors import InvalidRequest
from triptych.transport.ticket import Ticket

MAX_PARTS = 4_096


@dataclass(frozen=True)
class TicketPart:
    """The rows [first_row, end_row) of a ticket's tensor, of these the layers [first_layer, end_layer), and the ticket
    that names them alone."""

    ticket: Ticket
    first_row: int
    end_row: int
    first_layer: int
    end_layer: int

    @property
    def layers(self) -> slice:
        return slice(self.first_layer, self.end_layer)


def parts_of(ticket: Ticket) -> tuple[TicketPart, ...]:
    """The parts by rows, then by layers, for producer and consumer alike; none where the tensor travels as a whole.

    Raises InvalidRequest for more than 4,096 of them.
    """
    if len(ticket.shape) < 2 or 0 in ticket.shape[:2]:
        return ()
    rows, layers = ticket.shape[:2]
    rows_per_part = min(ticket.rows_per_part or rows, rows)
    layers_per_part = min(ticket.layers_per_part or layers, layers)
    if (rows_per_part, layers_per_part) == (rows, layers):
        return ()
    num_parts = -(-rows // rows_per_part) * -(-layers // layers_per_part)
    if num_parts > MAX_PARTS:
        raise InvalidRequest(
            f"ticket.rows_per_part={ticket.rows_per_part} and ticket.layers_per_part={ticket.layers_per_part} make "
            f"{num_parts} parts of {rows} rows and {layers} layers, expected at most {MAX_PARTS} "
            "(transport.kv_part_bytes, transport.kv_layer_groups)",
            field="ticket.rows_per_part",
        )
    corners = [(row, layer) for row in range(0, rows, rows_per_part) for layer in range(0, layers, layers_per_part)]
    return tuple(
        _part(ticket, index, row, min(row + rows_per_part, rows), layer, min(layer + layers_per_part, layers))
        for index, (row, layer) in enumerate(corners)
    )


def whole_of(ticket: Ticket) -> TicketPart:
    """A tensor that travels as a whole, as its one part."""
    return TicketPart(ticket, 0, ticket.shape[0], 0, ticket.shape[1])


def _part(ticket: Ticket, index: int, first_row: int, end_row: int, first_layer: int, end_layer: int) -> TicketPart:
    shape = (end_row - first_row, end_layer - first_layer, *ticket.shape[2:])
    own = replace(ticket, ticket_id=f"{ticket.ticket_id}.{index}", shape=shape, rows_per_part=0, layers_per_part=0)
    return TicketPart(own, first_row, end_row, first_layer, end_layer)
