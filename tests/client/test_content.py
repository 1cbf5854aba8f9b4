"""Messages and sampling options as the clients build them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.client import assistant, image, system, user, video
from triptych.client.content import to_messages
from triptych.client.request import make_request
from triptych.errors import InvalidRequest

PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def test_a_question_follows_its_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PICTURE.save(path)
    [message] = to_messages("what is it?", [path, str(path), path.read_bytes(), PICTURE], [[PICTURE, PICTURE]])
    assert [part.WhichOneof("part") for part in message.parts] == ["image"] * 4 + ["video", "text"]
    assert {part.image.data for part in message.parts[:3]} == {path.read_bytes()}
    assert len(message.parts[4].video.frames.frames) == 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pictures_of_any_mode_keep_their_pixels(mode: str) -> None:
    picture = PICTURE.convert(mode)
    sent = Image.open(io.BytesIO(image(picture).image.data))
    assert np.array_equal(np.array(sent.convert("RGB")), np.array(picture.convert("RGB")))


def test_a_video_is_a_file_or_frames_with_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"file")
    assert video(path).video.data == video(b"file").video.data == b"file"
    assert video([PICTURE], frames_per_second=2.5).video.frames.frames_per_second == 2.5


def test_a_chat_is_messages_or_mappings() -> None:
    built = to_messages([system("Be brief."), user("hi"), assistant("yes"), user(image(PICTURE), "?")], [], [])
    mapped = to_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": ["hi"]},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [image(PICTURE), "?"]},
        ],
        [],
        [],
    )
    assert built == mapped


def test_misuse_is_told() -> None:
    with pytest.raises(InvalidRequest, match="parts of a message"):
        to_messages([user("hi")], [PICTURE], [])
    with pytest.raises(InvalidRequest, match=r"messages\[0\]"):
        to_messages([{"text": "hi"}], [], [])
    with pytest.raises(TypeError, match="max_token"):
        make_request("hi", (), (), {"max_token": 3})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(InvalidRequest, match="seed") as caught:
        make_request("hi", (), (), {"seed": -1})
    assert caught.value.field == "sampling.seed"
    with pytest.raises(FileNotFoundError):
        image("/nowhere.png")


def test_options_that_are_not_given_stay_unset() -> None:
    sampling = make_request("hi", (), (), {"temperature": 0.0, "stop": "end"}).sampling
    assert sampling.HasField("temperature") and not sampling.HasField("max_tokens")
    assert list(sampling.stop) == ["end"]
