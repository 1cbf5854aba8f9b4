"""Batches in work stay within the memory they may take, by the engine's and the loader's estimates."""

import pytest

from encoder_service.memory import MemoryBudget
from triptych.errors import RequestTooLarge


def budget(max_bytes: int = 1_000, max_media_bytes: float = 200) -> MemoryBudget:
    """Ten bytes of activations and two of pixels and embedding for each patch."""
    return MemoryBudget(max_bytes, 2, lambda num_patches: 10 * num_patches, max_media_bytes)


def test_passes_run_one_after_another_so_that_the_largest_counts() -> None:
    memory = budget()
    first = memory.reserve(40, 100)
    assert memory.held_bytes == 400 + 80 + 100
    second = memory.reserve(30, 50)
    assert memory.held_bytes == 400 + 80 + 100 + 60 + 50
    first.media_bytes = 0  # packed
    memory.release(second)
    assert memory.held_bytes == 480
    memory.release(first)
    assert memory.held_bytes == 0


def test_what_fits_alone_may_not_fit_beside_others() -> None:
    memory = budget()
    assert memory.fits(80, 40) and not memory.fits(80, 41)
    held = memory.reserve(70, 0)  # 700 activations, 140 resident
    assert memory.fits(70, 20) and not memory.fits(70, 21)
    memory.release(held)


def test_pixels_are_decoded_in_parts() -> None:
    assert budget().fits(60, 10_000)


def test_what_can_never_fit_is_told_by_its_field_and_the_setting() -> None:
    memory = budget()
    memory.reserve(50, 0)
    memory.check_alone(83, 0, "items[1].media")
    with pytest.raises(RequestTooLarge, match=r"84 patches.* 1008 bytes.* at most 1000 \(stages.encoder.activation_by"):
        memory.check_alone(84, 0, "items[1].media")
