from __future__ import annotations

import asyncio

import pytest
from router_helpers import make_member

from router.control.membership import Membership, StageName


def test_members_are_the_ready_ones_of_their_stage() -> None:
    membership = Membership()
    ready, draining = make_member("encoder-a"), make_member("encoder-b", ready=False)
    decode = make_member("decode-a", StageName.DECODE)
    membership.set([ready, draining, decode])
    assert membership.members(StageName.ENCODER) == [ready]
    assert membership.members(StageName.DECODE) == [decode]
    assert membership.all_members() == [ready, draining, decode]


def test_a_lost_actor_leaves_at_once_and_stays_out() -> None:
    lost: list[str] = []
    membership = Membership(on_lost=lost.append)
    members = [make_member("encoder-a"), make_member("encoder-b")]
    membership.set(members)
    membership.report_lost("encoder-a")
    membership.report_lost("encoder-a")
    assert lost == ["encoder-a"]
    membership.set(members)
    assert [member.actor_id for member in membership.members(StageName.ENCODER)] == ["encoder-b"]


def test_a_lost_actor_that_answers_the_controller_is_restored() -> None:
    membership = Membership()
    membership.set([make_member("encoder-a")])
    membership.report_lost("encoder-a")
    membership.restore("encoder-a")
    assert [member.actor_id for member in membership.members(StageName.ENCODER)] == ["encoder-a"]


def test_only_changes_are_told() -> None:
    membership = Membership()
    calls: list[int] = []
    membership.on_change(lambda: calls.append(len(membership.all_members())))
    membership.set([make_member("encoder-a")])
    membership.set([make_member("encoder-a")])
    assert calls == [1]


async def test_who_waits_for_a_change_is_woken_by_the_next_one() -> None:
    membership = Membership()
    waiting = asyncio.create_task(membership.wait_for_change())
    await asyncio.sleep(0)
    membership.set([])
    await asyncio.sleep(0)
    assert not waiting.done(), "nothing changed"
    membership.set([make_member("decode-a", StageName.DECODE)])
    await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize("stage", list(StageName))
def test_stage_names_are_those_of_the_protos(stage: StageName) -> None:
    assert StageName.from_proto(stage.to_proto()) is stage
