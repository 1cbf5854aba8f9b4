"""What transformers answers, computed once for all tests of the folder."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from equality_cases import Case, all_cases
from equality_reference import Expected, Reference
from PIL import Image
from torch import Tensor

from triptych.models.qwen2_5_vl.processing import ImageProcessing
from triptych.models_folder import BUILT_IN_FOLDER


@pytest.fixture(scope="session")
def cases() -> tuple[Case, ...]:
    return all_cases()


@pytest.fixture(scope="session")
def reference() -> Reference:
    processing = ImageProcessing.from_folder(BUILT_IN_FOLDER)

    def resized_patches(data: bytes) -> Tensor:
        pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        return processing.patchify(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())

    return Reference(BUILT_IN_FOLDER, resized_patches)


@pytest.fixture(scope="session")
def expected(reference: Reference, cases: tuple[Case, ...]) -> dict[str, Expected]:
    """Greedy answers by the name of the case."""
    return {case.name: reference.answer(case) for case in cases}
