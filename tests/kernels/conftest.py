"""The kernels run in Triton's interpreter here: the same source, one program after the other, on the CPU."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

# Read when a kernel is decorated, so it has to be set before any kernel file is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def prepare() -> None:
    is_numpy_too_new = tuple(int(part) for part in np.__version__.split(".")[:2]) >= (2, 4)
    if is_numpy_too_new and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter turns arrays of one element into integers, which numpy 2.4 refuses")
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """Where Triton runs: the GPU, or the CPU through the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def half_dtype(device: torch.device) -> torch.dtype:
    """bfloat16; float16 in the interpreter, whose matrix products know numpy's types alone."""
    return torch.bfloat16 if device.type == "cuda" else torch.float16
