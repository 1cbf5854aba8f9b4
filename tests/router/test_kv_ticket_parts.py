"""How the router cuts the ticket of a prompt's KV pages into parts."""

from __future__ import annotations

import math

import pytest

from router.control.membership import Member, StageName
from router.dispatch.tickets import TicketMaker
from triptych.models.qwen2_5_vl.config import TextConfig
from triptych.transport.parts import MAX_PARTS, parts_of
from triptych.transport.ticket import Ticket
from triptych.v1 import common_pb2

MIB = 1 << 20
TEXT = TextConfig(8, 8, 8, 36, 8, 2, 128, 1e-6, 1e4, (16, 24, 24), 4_096, tie_word_embeddings=True)
MEMBER = Member(
    actor_id="prefill-1",
    stage=StageName.PREFILL,
    endpoint="127.0.0.1:1",
    host_id="host",
    lanes=("grpc",),
    model_fingerprint="weights",
    dtype=common_pb2.DATA_TYPE_BFLOAT16,
    multimodal_disaggregated=True,
)


def shapes(num_tokens: int, kv_part_bytes: int, kv_layer_groups: int) -> list[tuple[int, int]]:
    """Pages and layers of each part."""
    maker = TicketMaker(TEXT, 16, 10.0, kv_part_bytes, kv_layer_groups)
    parts = parts_of(Ticket.from_proto(maker.kv_ticket(num_tokens, MEMBER)))
    assert all(part.ticket.spec.num_bytes == math.prod(part.ticket.shape) * 2 for part in parts)
    return [(part.end_row - part.first_row, part.end_layer - part.first_layer) for part in parts]


@pytest.mark.parametrize(
    ("num_tokens", "kv_part_bytes", "kv_layer_groups", "expected"),
    [
        (3_200, 0, 4, []),
        # 576 KiB a page: 28 MiB are one part, whatever the groups.
        (800, 32 * MIB, 4, []),
        # 56 MiB fill two groups, 112 MiB four, and no more than there may be.
        (1_600, 32 * MIB, 4, [(100, 18)] * 2),
        (3_200, 32 * MIB, 4, [(200, 9)] * 4),
        (3_200, 32 * MIB, 3, [(170, 12)] * 3 + [(30, 12)] * 3),
        (3_200, 8 * MIB, 4, [(56, 9)] * 12 + [(32, 9)] * 4),
        (3_200, 32 * MIB, 1, [(56, 36)] * 3 + [(32, 36)]),
        # Layers that do not divide: the last group has fewer.
        (16, 1, 5, [(1, 8)] * 4 + [(1, 4)]),
        (16, 1, 64, [(1, 1)] * 36),
        (1, 1, 1, []),
    ],
)
def test_by_layers_as_far_as_they_fill_parts_then_by_pages(
    num_tokens: int, kv_part_bytes: int, kv_layer_groups: int, expected: list[tuple[int, int]]
) -> None:
    assert shapes(num_tokens, kv_part_bytes, kv_layer_groups) == expected


@pytest.mark.parametrize("kv_layer_groups", [1, 4, 7, 36])
def test_a_long_prompt_stays_within_the_bound(kv_layer_groups: int) -> None:
    parts = shapes(1_000_000, 1, kv_layer_groups)
    assert len(parts) <= MAX_PARTS
    assert sum(pages * layers for pages, layers in parts) == 62_500 * 36
