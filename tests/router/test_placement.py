from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_helpers import make_member

from router.control.membership import StageName
from router.dispatch.content_affinity import ContentAffinity
from router.dispatch.loads import NO_LOAD, Load, LoadLedger
from router.dispatch.placement import LeastLoaded, MediaWork, RoundRobin, create_placement_policy
from triptych.errors import ConfigurationError

ENCODERS = [make_member(f"encoder-{name}") for name in "abc"]
PREFILLS = [make_member(f"prefill-{name}", StageName.PREFILL) for name in "ab"]
DECODES = [make_member(f"decode-{name}", StageName.DECODE) for name in "ab"]


def test_pictures_of_one_request_are_split_evenly() -> None:
    items = [MediaWork(f"key{index}", size) for index, size in enumerate((1, 4, 7, 3, 4, 5))]
    chosen = LeastLoaded().choose_encoders(items, ENCODERS, LoadLedger())
    totals = {member.actor_id: 0 for member in ENCODERS}
    for item, member in zip(items, chosen, strict=True):
        totals[member.actor_id] += item.num_patches
    assert max(totals.values()) == 8 and sum(totals.values()) == 24


def test_a_busy_encoder_gets_less() -> None:
    loads = LoadLedger()
    loads.take("encoder-a", Load(num_patches=100))
    chosen = LeastLoaded().choose_encoders([MediaWork("x", 10), MediaWork("y", 10)], ENCODERS, loads)
    assert {member.actor_id for member in chosen} == {"encoder-b", "encoder-c"}


def test_a_repeat_goes_where_its_embedding_is_even_when_that_is_busy() -> None:
    policy, loads = LeastLoaded(), LoadLedger()
    [first] = policy.choose_encoders([MediaWork("x", 10)], ENCODERS, loads)
    loads.take(first.actor_id, Load(num_patches=1_000))
    assert policy.choose_encoders([MediaWork("x", 10)], ENCODERS, loads) == [first]
    others = [member for member in ENCODERS if member != first]
    [moved] = policy.choose_encoders([MediaWork("x", 10)], others, loads)
    assert policy.choose_encoders([MediaWork("x", 10)], ENCODERS, loads) == [moved]


@pytest.mark.parametrize("policy", [LeastLoaded(), RoundRobin()], ids=["least_loaded", "round_robin"])
def test_one_picture_twice_goes_to_one_encoder(policy: LeastLoaded | RoundRobin) -> None:
    items = [MediaWork("x", 10), MediaWork("y", 10), MediaWork("x", 10)]
    first, _, third = policy.choose_encoders(items, ENCODERS, LoadLedger())
    assert first == third


def test_prefill_goes_by_tokens_and_decode_by_requests() -> None:
    policy, loads = LeastLoaded(), LoadLedger()
    loads.take("prefill-a", Load(num_prompt_tokens=50, num_requests=1))
    loads.take("prefill-b", Load(num_prompt_tokens=40, num_requests=9))
    loads.take("decode-a", Load(num_requests=2))
    loads.take("decode-b", Load(num_requests=1))
    assert policy.choose_prefill(PREFILLS, loads).actor_id == "prefill-b"
    assert policy.choose_decode(DECODES, loads).actor_id == "decode-b"


def test_round_robin_takes_turns() -> None:
    policy = RoundRobin()
    turns = [policy.choose_decode(DECODES, LoadLedger()).actor_id for _ in range(4)]
    assert turns == ["decode-a", "decode-b", "decode-a", "decode-b"]


def test_policies_are_made_by_name() -> None:
    assert isinstance(create_placement_policy("round_robin"), RoundRobin)
    with pytest.raises(ConfigurationError, match="least_loaded, round_robin"):
        create_placement_policy("best")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9), st.booleans())))
def test_the_ledger_returns_to_nothing(holds: list[tuple[str, int, bool]]) -> None:
    loads = LoadLedger()
    taken = [(loads.take(actor, Load(num_patches=size)), twice) for actor, size, twice in holds]
    assert loads.of("a").num_patches == sum(size for actor, size, _ in holds if actor == "a")
    for hold, twice in taken:
        hold.release()
        if twice:
            hold.release()
    assert loads.of("a") == loads.of("b") == NO_LOAD


def test_affinity_forgets_the_oldest() -> None:
    affinity = ContentAffinity(max_content_keys=2)
    for key in ("x", "y", "x", "z"):
        affinity.remember(key, "encoder-a")
    assert affinity.actor_of("y") is None
    assert affinity.actor_of("x") == affinity.actor_of("z") == "encoder-a"
