"""The name of an attention backend, and what is said to one that isn't there."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch
from engine_helpers import CPU

from llm_service.attention import choose_attention
from triptych.errors import ConfigurationError


def test_auto_is_torch_on_a_cpu() -> None:
    assert choose_attention("auto", CPU) == "torch"


@pytest.mark.parametrize(
    ("name", "says"), [("flash_attn", "one of flashinfer, torch, triton"), ("fast", "expected auto or one of")]
)
def test_unknown_ones_are_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        choose_attention(name, CPU)
    assert caught.value.field == "attention"


@pytest.mark.parametrize(("name", "package"), [("triton", "triton"), ("flashinfer", "flashinfer-python")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ConfigurationError, match=f"the package {package} is not installed") as caught:
        choose_attention(name, CPU)
    assert caught.value.field == "attention"


def test_flashinfer_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: ModuleSpec(module, None))
    with pytest.raises(ConfigurationError, match="needs a GPU, but the device is cpu"):
        choose_attention("flashinfer", CPU)
    assert choose_attention("flashinfer", torch.device("cuda")) == "flashinfer"
