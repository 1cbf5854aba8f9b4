"""Videos are opened from memory and counted without decoding."""

import io
import sys
from fractions import Fraction

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import encoded, picture, video

from triptych.config import LimitsSection
from triptych.errors import ConfigurationError, InvalidRequest, RequestTooLarge
from triptych.media import VideoShape, probe_frames, probe_video

FIELD = "messages[0].parts[0].video.data"
LIMITS = LimitsSection()
CODINGS = [
    ("mp4", "libx264"),
    ("mov", "libx264"),
    ("mp4", "mpeg4"),
    ("matroska", "libx264"),
    ("webm", "libvpx"),
    ("webm", "libvpx-vp9"),
    ("avi", "mpeg4"),
]


@pytest.mark.parametrize(("container", "codec"), CODINGS)
def test_every_container_is_measured(container: str, codec: str) -> None:
    data = video(12, 64, 48, 8, container, codec)
    assert probe_video(data, LIMITS, FIELD) == VideoShape(64, 48, 12, 8.0)


def test_fractional_rate() -> None:
    shape = probe_video(video(9, rate=Fraction(30_000, 1001)), LIMITS, FIELD)
    assert shape.num_frames == 9
    assert shape.frames_per_second == pytest.approx(29.97, abs=1e-3)


def test_reference_frames_that_are_not_shown_do_not_count() -> None:
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5", "g": "60"}
    data = video(40, 64, 48, 10, "webm", "libvpx", **options)
    assert probe_video(data, LIMITS, FIELD).num_frames == 40


def test_nothing_is_decoded() -> None:
    """Frames that no decoder could read are counted all the same."""
    data = video(10, container="avi", codec="mpeg4")
    start, end = data.index(b"movi") + 12, data.index(b"idx1")
    first_frame_bytes = int.from_bytes(data[start - 4 : start], "little")
    assert 0 < first_frame_bytes < end - start
    broken = data[:start] + b"\xff" * first_frame_bytes + data[start + first_frame_bytes :]
    assert probe_video(broken, LIMITS, FIELD).num_frames == 10


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (LimitsSection(max_video_bytes=100), "at most 100 (limits.max_video_bytes)"),
        (LimitsSection(max_video_frames=9), "at most 9 (limits.max_video_frames)"),
        (LimitsSection(max_image_pixels=3_000), "at most 3000 (limits.max_image_pixels)"),
    ],
)
def test_limits(limits: LimitsSection, words: str) -> None:
    with pytest.raises(RequestTooLarge) as caught:
        probe_video(video(10), limits, FIELD)
    assert words in caught.value.message
    assert caught.value.field == FIELD


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"no video at all", "MP4, MOV, WebM, MKV or AVI"),
        # Would make libav open other files.
        (PLAYLIST, "MP4, MOV, WebM, MKV or AVI"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "MP4, MOV, WebM, MKV or AVI"),
        (video(10)[:200], "not a readable video"),
        (video(10, container="avi", codec="mpeg4")[:300], "not a readable video"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(100), FIELD),
    ],
)
def test_what_is_no_video(data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        probe_video(data, LIMITS, FIELD)
    assert words in caught.value.message
    assert caught.value.field == FIELD


def test_sound_alone_is_no_video() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=8_000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=1024)
        frame.sample_rate = 8_000
        output.mux(stream.encode(frame))
    with pytest.raises(InvalidRequest, match="no video stream"):
        probe_video(buffer.getvalue(), LIMITS, FIELD)


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video(4)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigurationError, match=r"triptych\[video\]"):
        probe_video(data, LIMITS, FIELD)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_files_raise_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        probe_video(bytes(damaged), LIMITS, FIELD)
    except InvalidRequest as error:
        assert error.field == FIELD


SMALL = video(6)


def test_frames() -> None:
    frames = [encoded(picture(30, 20, seed=seed), "JPEG") for seed in range(5)]
    assert probe_frames(frames, LIMITS, "video", frames_per_second=4.5) == VideoShape(30, 20, 5, 4.5)
    assert probe_frames(frames, LIMITS, "video").frames_per_second == 0


@pytest.mark.parametrize(
    ("frames", "rate", "field", "words"),
    [
        ([], 0.0, "video.frames", "no frames"),
        ([encoded(picture(30, 20)), encoded(picture(20, 30))], 0.0, "video.frames[1]", "20x30 pixels, expected 30x20"),
        ([encoded(picture(30, 20)), b"broken"], 0.0, "video.frames[1]", "JPEG, PNG"),
        ([encoded(picture(30, 20))], float("nan"), "video.frames_per_second", "nan"),
        ([encoded(picture(30, 20))], -1.0, "video.frames_per_second", ">= 0"),
        ([encoded(picture(8, 8))] * 9, 0.0, "video.frames", "at most 8 (limits.max_video_frames)"),
        ([bytes(400)] * 3, 0.0, "video.frames", "at most 1000 (limits.max_video_bytes)"),
    ],
)
def test_bad_frames(frames: list[bytes], rate: float, field: str, words: str) -> None:
    limits = LimitsSection(max_video_frames=8, max_video_bytes=1_000 if frames[:1] == [bytes(400)] else 100_000)
    with pytest.raises(InvalidRequest) as caught:
        probe_frames(frames, limits, "video", frames_per_second=rate)
    assert caught.value.field == field
    assert words in caught.value.message


def test_all_frames_together_have_a_limit() -> None:
    """Few bytes can hold many large frames, and each one up to the last sampled has to be decoded."""
    data = video(12, 64, 48)
    assert probe_video(data, LimitsSection(max_video_pixels=12 * 64 * 48), FIELD).num_frames == 12
    with pytest.raises(RequestTooLarge, match=r"12 frames of 64x48 = 36864 pixels.*limits\.max_video_pixels"):
        probe_video(data, LimitsSection(max_video_pixels=12 * 64 * 48 - 1), FIELD)
