"""`triptych scale prefill:decode=1`."""

from __future__ import annotations

import pytest

from router.cli.admin import parse_move
from router.control.membership import StageName
from triptych.errors import InvalidRequest


def test_two_stages_and_a_number() -> None:
    assert parse_move("prefill:decode=1") == (StageName.PREFILL, StageName.DECODE, 1)
    assert parse_move("decode:prefill-decode=2") == (StageName.DECODE, StageName.PREFILL_DECODE, 2)
    assert parse_move("decode=2") is None


@pytest.mark.parametrize("wish", ["prefill:decode", "prefill:=1", ":decode=1", "prefill:moon=1", "prefill:decode=auto"])
def test_what_is_no_move_says_what_was_expected(wish: str) -> None:
    with pytest.raises(InvalidRequest, match="STAGE:STAGE=N"):
        parse_move(wish)
