"""Video files and lists of frames that are cut, lie about themselves, or are bombs."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from attack_helpers import MIB, Attacker, ask, circle, frames_part, png, text_part, user_request, video_part
from hostile_videos import HOSTILE_VIDEOS, HostileVideo, slow_video, video, video_with_sound
from PIL import Image

pytestmark = pytest.mark.asyncio(loop_scope="module")

DIRECTION = "Which way does it move?"
SMALL, LARGE = png(Image.new("RGB", (56, 56))), png(Image.new("RGB", (56, 84)))


@pytest.mark.parametrize("hostile", HOSTILE_VIDEOS, ids=lambda hostile: hostile.name)
async def test_a_hostile_video_is_refused_in_plain_words(attacker: Attacker, hostile: HostileVideo) -> None:
    data = hostile.make()
    field = "messages[0].parts[0].video.data"
    request = user_request(video_part(data), text_part(DIRECTION))
    await attacker.refused(request, field, field, *hostile.says, peak_bytes=100 * MIB + 8 * len(data))
    await attacker.check_aftermath()


@pytest.mark.parametrize(
    ("part", "field", "says"),
    [
        (frames_part(), "frames", "no frames"),
        (frames_part(SMALL, LARGE), "frames[1]", "expected 56x56 as frame 0"),
        (frames_part(SMALL, b""), "frames[1]", "is empty"),
        (frames_part(SMALL, SMALL[:40]), "frames[1]", "not a readable image"),
        (frames_part(SMALL, SMALL, frames_per_second=float("nan")), "frames_per_second", "nan, expected a number >= 0"),
        (frames_part(SMALL, SMALL, frames_per_second=float("inf")), "frames_per_second", "inf"),
        (frames_part(SMALL, SMALL, frames_per_second=-1.0), "frames_per_second", "-1.0"),
        (frames_part(*[SMALL] * 4_097), "frames", "limits.max_video_frames"),
    ],
    ids=["none", "two sizes", "empty", "cut", "nan", "inf", "negative", "too many"],
)
async def test_bad_frames_are_refused_in_plain_words(attacker: Attacker, part: object, field: str, says: str) -> None:
    await attacker.refused(user_request(part, text_part(DIRECTION)), f"messages[0].parts[0].video.{field}", says)
    await attacker.check_aftermath()


@pytest.mark.parametrize("frames_per_second", [5e-324, 1e-9, 0.001, 1e9, 1e300, 1.7976931348623157e308])
async def test_an_absurd_rate_of_frames_is_answered_or_refused(attacker: Attacker, frames_per_second: float) -> None:
    part = frames_part(*[SMALL] * 5, frames_per_second=frames_per_second)
    outcome = await attacker.generate(user_request(part, text_part(DIRECTION)))
    if outcome.code is not grpc.StatusCode.OK:
        assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT, outcome.message
        assert outcome.field.startswith("messages[0].parts[0].video"), outcome.field
    assert outcome.seconds < 2
    await attacker.check_aftermath()


async def test_a_video_without_a_source_is_refused(attacker: Attacker) -> None:
    part = video_part(b"")
    part.video.ClearField("data")
    await attacker.refused(user_request(part, text_part(DIRECTION)), "messages[0].parts[0].video.data", "is empty")


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
async def test_a_video_cut_anywhere_is_answered_or_refused(attacker: Attacker, container: str, share: float) -> None:
    data = video(container=container, codec="mpeg4" if container == "avi" else "libx264")
    outcome = await attacker.generate(user_request(video_part(data[: int(len(data) * share)]), text_part(DIRECTION)))
    if outcome.code is not grpc.StatusCode.OK:
        assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT, outcome.message
        assert outcome.field == "messages[0].parts[0].video.data"
    await attacker.check_aftermath()


@pytest.mark.parametrize(
    ("codec", "container", "is_fragmented"),
    [("aac", "mp4", False), ("aac", "mp4", True), ("pcm_s16le", "mov", False), ("pcm_s16le", "mov", True)],
)
async def test_a_video_with_sound_is_answered_as_without(
    attacker: Attacker, codec: str, container: str, is_fragmented: bool
) -> None:
    """What keeps lying tables from libav must not keep it from real ones: sound has a million samples a minute."""
    silent = await attacker.generate(user_request(video_part(video()), text_part(DIRECTION)))
    data = video_with_sound(codec, container, is_fragmented)
    outcome = await attacker.generate(user_request(video_part(data), text_part(DIRECTION)))
    assert (outcome.code, outcome.text) == (grpc.StatusCode.OK, silent.text), outcome.message
    assert outcome.text == "The square moves to the right."


async def test_a_video_that_nobody_waits_for_does_not_keep_its_thread(attacker: Attacker) -> None:
    """Decoding takes seconds here. When the deadline has passed, all media threads are free again."""
    impatient = [user_request(video_part(slow_video(number)), text_part(DIRECTION)) for number in range(4)]
    outcomes = await asyncio.gather(*(attacker.generate(request, timeout_s=0.3) for request in impatient))
    assert {outcome.code for outcome in outcomes} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    picture = user_request(frames_part(circle()), text_part("What is it?"))
    outcome = await attacker.generate(picture, timeout_s=1.0)
    assert outcome.code is grpc.StatusCode.OK, outcome.message
    await attacker.check_aftermath()


async def test_text_is_answered_while_media_are_refused(attacker: Attacker) -> None:
    bad = [user_request(video_part(hostile.make()[:MIB]), text_part(DIRECTION)) for hostile in HOSTILE_VIDEOS]
    *_, answer = await asyncio.gather(*(attacker.generate(request) for request in bad), attacker.generate(ask("hi")))
    assert answer.code is grpc.StatusCode.OK
    await attacker.check_aftermath()
