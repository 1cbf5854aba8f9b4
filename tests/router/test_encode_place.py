"""Mode auto on paper: where a request is encoded, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_helpers import make_member

from router.control.membership import StageName
from router.dispatch.encode_costs import EncodeCostMeter
from router.dispatch.encode_place import EncodeContext, EncodeCosts, EncodeReason, choose_encode_place
from router.dispatch.placement import Placement
from router.dispatch.walk_record import WalkRecord
from triptych.v1 import encoder_pb2, language_pb2

COSTS = EncodeCosts(encoder_s_per_patch=1e-5, language_s_per_patch=1e-5, hop_s=5e-3)
IDLE = EncodeContext(
    num_items=1,
    num_patches=1_000,
    num_uncached_patches=1_000,
    num_encoders=2,
    encoder_backlog_patches=0,
    has_tower=True,
    language_backlog_patches=0,
    num_running=0,
    stall_share=1.0,
)
R = EncodeReason


@pytest.mark.parametrize(
    ("changes", "uses_encoders", "reason"),
    [
        ({"num_patches": 0, "num_uncached_patches": 0}, False, R.NO_MEDIA),
        ({"has_tower": False}, True, R.NO_TOWER),
        ({"num_encoders": 0}, False, R.NO_ENCODER),
        ({"num_uncached_patches": 0}, True, R.CACHED),
        ({}, False, R.IDLE_LANGUAGE_ACTOR),
        ({"num_running": 4}, True, R.RUNNING_ANSWERS),
        ({"num_running": 4, "num_patches": 50, "num_uncached_patches": 50}, False, R.FEW_PATCHES),
        ({"num_running": 4, "encoder_backlog_patches": 9_000}, False, R.ENCODER_QUEUE),
        ({"language_backlog_patches": 2_000}, True, R.LANGUAGE_QUEUE),
        ({"num_items": 8, "num_patches": 8_000, "num_uncached_patches": 8_000}, True, R.FASTER_ENCODERS),
    ],
)
def test_each_reason(changes: dict[str, int], uses_encoders: bool, reason: EncodeReason) -> None:
    choice = choose_encode_place(replace(IDLE, **changes), COSTS)
    assert (choice.uses_encoders, choice.reason) == (uses_encoders, reason)


contexts = st.builds(
    EncodeContext,
    num_items=st.integers(1, 8),
    num_patches=st.just(4_000),
    num_uncached_patches=st.integers(1, 4_000),
    num_encoders=st.integers(1, 4),
    encoder_backlog_patches=st.integers(0, 100_000),
    has_tower=st.just(True),
    language_backlog_patches=st.integers(0, 100_000),
    num_running=st.integers(0, 64),
    stall_share=st.floats(0, 1),
)


@given(contexts, st.integers(1, 50_000))
def test_a_longer_queue_never_draws_work_to_itself(context: EncodeContext, more: int) -> None:
    choice = choose_encode_place(context, COSTS)
    behind_encoders = replace(context, encoder_backlog_patches=context.encoder_backlog_patches + more)
    behind_tower = replace(context, language_backlog_patches=context.language_backlog_patches + more)
    if not choice.uses_encoders:
        assert not choose_encode_place(behind_encoders, COSTS).uses_encoders
    else:
        assert choose_encode_place(behind_tower, COSTS).uses_encoders


def record(
    *encoders: str, results: list[encoder_pb2.EncodeResult], own_s: float = 0.0, hop_s: float = 0.0
) -> WalkRecord:
    actor = make_member("llm", StageName.PREFILL_DECODE)
    walk = WalkRecord(Placement(tuple(make_member(name) for name in encoders), None, actor))
    walk.decode = language_pb2.DecodeResponse(prefill=language_pb2.PrefillResponse(encode_s=own_s))
    walk.note_encoded(encoder_pb2.EncodeResponse(results=results), call_s=hop_s + sum(r.encode_s for r in results[:1]))
    return walk


def test_costs_are_those_that_requests_reported() -> None:
    meter = EncodeCostMeter()
    result = encoder_pb2.EncodeResult(encode_s=0.2)
    meter.note(record("a", "b", results=[result, result], hop_s=0.01), num_patches=1_000)
    meter.note(record(results=[], own_s=0.3), num_patches=1_000)
    assert meter.costs.encoder_s_per_patch == pytest.approx(0.2 / 500)
    assert meter.costs.language_s_per_patch == pytest.approx(0.3 / 1_000)
    assert meter.costs.hop_s == pytest.approx(0.01)


def test_cached_and_empty_requests_say_nothing_about_costs() -> None:
    meter = EncodeCostMeter()
    before = meter.costs
    meter.note(record("a", results=[encoder_pb2.EncodeResult(is_cache_hit=True, encode_s=9.0)]), num_patches=10)
    meter.note(record(results=[]), num_patches=0)
    assert meter.costs == before
