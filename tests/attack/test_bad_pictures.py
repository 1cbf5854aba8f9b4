"""Pictures that are cut, lie about themselves, or are bombs."""

from __future__ import annotations

import grpc
import pytest
from attack_helpers import MIB, QUESTION, Attacker, bounded_memory, circle, image_part, png, text_part, user_request
from harness import COLOCATED
from hostile_pictures import (
    BIG,
    HOSTILE_PICTURES,
    HostilePicture,
    encoded,
    png_too_much_pixel_data,
    tiff_overlapping_tags,
)
from PIL import Image

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("picture", HOSTILE_PICTURES, ids=lambda picture: picture.name)
async def test_a_hostile_picture_is_refused_in_plain_words(attacker: Attacker, picture: HostilePicture) -> None:
    request = user_request(image_part(circle()), image_part(picture.make()), text_part(QUESTION))
    field = "messages[0].parts[1].image.data"
    await attacker.refused(request, field, field, *picture.says, peak_bytes=picture.peak_bytes)
    await attacker.check_aftermath()


@pytest.mark.parametrize(
    "data",
    [
        png(Image.new("RGB", (1, 1), "red")),
        png(Image.new("RGB", (1, 200), "red")),
        png(Image.new("1", (3, 3))),
        encoded(Image.new("L", (5, 5)), "JPEG"),
        encoded(Image.new("CMYK", (60, 60)), "JPEG"),
        encoded(Image.new("P", (7, 9)), "GIF"),
        encoded(Image.new("I;16", (30, 30)), "PNG"),
        png_too_much_pixel_data(),
        tiff_overlapping_tags()[: 4 * MIB],
    ],
    ids=["1x1", "1x200", "bilevel", "grey jpeg", "cmyk", "palette", "16 bit", "more pixels than promised", "overlap"],
)
async def test_an_odd_picture_is_answered_or_refused(attacker: Attacker, data: bytes) -> None:
    with bounded_memory(96 * MIB):
        outcome = await attacker.generate(user_request(image_part(data), text_part(QUESTION)))
    if outcome.code is not grpc.StatusCode.OK:
        assert (outcome.code, outcome.field) == (grpc.StatusCode.INVALID_ARGUMENT, "messages[0].parts[0].image.data")
    assert outcome.seconds < 2
    await attacker.check_aftermath()


async def test_a_1x1_picture_is_a_picture(attacker: Attacker) -> None:
    outcome = await attacker.generate(user_request(image_part(png(Image.new("RGB", (1, 1)))), text_part(QUESTION)))
    assert outcome.code is grpc.StatusCode.OK and outcome.token_ids


async def test_the_largest_picture_allowed_is_answered_within_its_memory(attacker: Attacker) -> None:
    """A file of 200 kB with 64 million pixels: 4 bytes a pixel in Pillow, 3 as RGB, and no further copy."""
    if attacker.system.topology == COLOCATED:
        pytest.skip("the same code in the same process")
    largest = png(Image.new("RGB", (BIG, BIG), "red"))
    with bounded_memory((4 + 3) * BIG * BIG + 64 * MIB):
        outcome = await attacker.generate(user_request(image_part(largest), text_part(QUESTION)))
    assert outcome.code is grpc.StatusCode.OK, outcome.message
    await attacker.check_aftermath()
