"""The name of an attention backend, and what is said to one that isn't there."""

from __future__ import annotations

import pytest
from engine_helpers import CPU

from llm_service.attention import choose_attention
from triptych.errors import ConfigurationError


def test_auto_is_torch_on_a_cpu() -> None:
    assert choose_attention("auto", CPU) == "torch"


@pytest.mark.parametrize(
    ("name", "says"), [("flashinfer", "flashinfer-python"), ("flash_attn", "flash-attn"), ("fast", "torch, triton")]
)
def test_others_are_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        choose_attention(name, CPU)
    assert caught.value.field == "attention"
