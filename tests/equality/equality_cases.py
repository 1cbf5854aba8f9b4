"""The prompts on which Triptych and transformers must agree, as files that both sides are given."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from random import Random

import av
import numpy as np
from PIL import Image

from triptych.client import assistant, image, system, user, video
from triptych.demo.pictures import draw, draw_video, random_movie, random_scene
from triptych.v1 import inference_pb2

# The sampling rate in the checkpoint's video settings: what frames without a rate count as sampled at.
MODEL_FRAMES_PER_SECOND = 2.0


@dataclass(frozen=True)
class Picture:
    """An image file. `is_resized`: its sides are not those that the model sees."""

    data: bytes
    is_resized: bool = False


@dataclass(frozen=True)
class Video:
    """A video file, or its frames as image files.

    `sampled` are the frames that the checkpoint's settings choose (2 a second, 4 to 8, an even number), by hand.
    """

    num_frames: int
    frames_per_second: float
    sampled: tuple[int, ...]
    data: bytes = b""
    frames: tuple[bytes, ...] = ()


Medium = Picture | Video
Part = str | Medium


@dataclass(frozen=True)
class Case:
    """A chat: pairs of role and parts. System and assistant messages are text."""

    name: str
    turns: tuple[tuple[str, tuple[Part, ...]], ...]

    @property
    def media(self) -> list[Medium]:
        """In the order of the prompt."""
        return [part for _, parts in self.turns for part in parts if not isinstance(part, str)]

    @property
    def messages(self) -> list[inference_pb2.ChatMessage]:
        """The chat as a client sends it."""
        return [_message(role, parts) for role, parts in self.turns]


def _message(role: str, parts: tuple[Part, ...]) -> inference_pb2.ChatMessage:
    if role == "user":
        return user(*(part if isinstance(part, str) else _content(part) for part in parts))
    [text] = parts
    assert isinstance(text, str)
    return system(text) if role == "system" else assistant(text)


def _content(medium: Medium) -> inference_pb2.ContentPart:
    if isinstance(medium, Picture):
        return image(medium.data)
    if medium.data:
        return video(medium.data)
    return video(medium.frames, frames_per_second=medium.frames_per_second)


# --- media ---


def picture(seed: int, width: int, height: int, file_format: str = "PNG", is_resized: bool = False) -> Picture:
    scene = random_scene(Random(seed), width, height, 1 + seed % 3)
    return Picture(_image_file(draw(scene), file_format), is_resized)


def moving_frames(
    seed: int, width: int, height: int, num_frames: int, frames_per_second: float, sampled: tuple[int, ...]
) -> Video:
    frames = _movie(seed, width, height, num_frames)
    files = tuple(_image_file(frame, "PNG") for frame in frames)
    return Video(num_frames, frames_per_second, sampled, frames=files)


def movie_file(
    seed: int,
    width: int,
    height: int,
    num_frames: int,
    frames_per_second: Fraction,
    sampled: tuple[int, ...],
    container_format: str,
) -> Video:
    frames = _movie(seed, width, height, num_frames)
    data = _video_file(frames, frames_per_second, container_format)
    return Video(num_frames, float(frames_per_second), sampled, data=data)


def _movie(seed: int, width: int, height: int, num_frames: int) -> list[Image.Image]:
    return draw_video(random_movie(Random(seed), width, height, num_frames))


def _image_file(picture: Image.Image, file_format: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format)
    return file.getvalue()


def _video_file(frames: list[Image.Image], rate: Fraction, container_format: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


# --- the set ---


@cache
def all_cases() -> tuple[Case, ...]:
    """Text, one picture, several, pictures between text, videos as files and as frames, ten turns."""
    return (*_texts(), *_single_pictures(), *_several_pictures(), *_videos(), *_ten_turns())


def _asked(name: str, *parts: Part) -> Case:
    return Case(name, (("user", parts),))


def _texts() -> tuple[Case, ...]:
    numbers = ", ".join(str(number) for number in range(90))
    return (
        _asked("greeting", "Hello!"),
        _asked("counting", "Count from 3 to 27."),
        _asked("sum", "What is 4 plus 7?"),
        _asked("unknown words", "Zähle die Kreise – 数一数 🙂, s'il vous plaît."),
        _asked("long text", f"Here are the numbers: {numbers}. Count from 1 to 12."),
        Case("system prompt", (("system", ("Be very brief.",)), ("user", ("What can you do?",)))),
    )


def _single_pictures() -> tuple[Case, ...]:
    return (
        _asked("one picture", picture(1, 112, 112), "What is in the picture?"),
        _asked("tall picture", picture(2, 84, 168), "How many shapes are there?"),
        _asked("wide picture", picture(3, 252, 168), "Where is the circle?"),
        _asked("smallest picture", picture(4, 56, 56), "What do you see?"),
        _asked("largest picture", picture(5, 224, 224), "Describe the picture."),
        _asked("flat picture", picture(6, 280, 56), "Is there a red square?"),
        _asked("JPEG", picture(7, 140, 112, "JPEG"), "What colour is the shape?"),
        _asked("picture behind the text", "What is this?", picture(8, 112, 140)),
        _asked("picture scaled down", picture(9, 300, 211, is_resized=True), "What is in the picture?"),
        _asked("picture scaled up", picture(10, 40, 61, is_resized=True), "What is in the picture?"),
    )


def _several_pictures() -> tuple[Case, ...]:
    twice = picture(11, 84, 112)
    return (
        _asked("two pictures", picture(12, 84, 140), picture(13, 168, 112), "Which picture has more shapes?"),
        _asked("two more pictures", picture(14, 196, 84), picture(15, 56, 112), "What is in the second picture?"),
        _asked(
            "tall and wide", picture(16, 56, 224), picture(17, 224, 56), "How many shapes are in the first picture?"
        ),
        _asked("one picture twice", twice, "Count the shapes.", twice, "Which picture has more shapes?"),
        _asked(
            "pictures between text",
            "The first picture: ",
            picture(18, 112, 84),
            " The second picture: ",
            picture(19, 140, 168),
            " Which picture has more circles?",
        ),
        _asked(
            "three pictures between text",
            *("Look at ", picture(20, 112, 56), " and at ", picture(21, 56, 84), ", then at ", picture(22, 140, 84)),
            ". What is in the first picture?",
        ),
        _asked("four pictures", *(picture(23 + n, 56 + 28 * n, 140 - 28 * n) for n in range(4)), "What do you see?"),
    )


def _videos() -> tuple[Case, ...]:
    frames = moving_frames(30, 112, 84, 8, 3.3, sampled=(0, 2, 4, 6))
    file = movie_file(31, 112, 112, 12, Fraction(7, 2), (0, 2, 4, 6, 8, 10), "mp4")
    long_file = movie_file(32, 84, 140, 36, Fraction(30_000, 4_001), (0, 4, 9, 13, 18, 22, 27, 31), "avi")
    return (
        _asked("video as frames", frames, "Which way does it move?"),
        _asked("video as MP4", file, "What happens in the video?"),
        _asked("video as AVI", long_file, "What colour is it?"),
        # Seconds for a temporal step: its positions reach past those of the text behind it.
        _asked("slow video", moving_frames(33, 84, 84, 6, 0.45, (0, 1, 2, 3, 4, 5)), "Which way does it move?"),
        _asked("odd number of frames", moving_frames(34, 84, 56, 5, 0.0, (0, 1, 2, 3, 4)), "What is moving?"),
        _asked("video and picture", "The video: ", frames, " A picture: ", picture(35, 84, 112), "What is this?"),
        _asked("two videos", file, long_file, "Which way does the shape move?"),
    )


def _ten_turns() -> tuple[Case, ...]:
    text = [("What is 2 plus 3?", "2 plus 3 is 5."), ("Hello!", "Hello! Show me a picture with coloured shapes.")] * 5
    pictures = {0: picture(40, 140, 84), 4: picture(41, 84, 112), 9: picture(42, 112, 168)}
    about = [("What is in the picture?", "A red circle."), ("How many shapes are there?", "There is one shape.")] * 5
    video = {9: moving_frames(43, 84, 112, 8, 2.7, sampled=(0, 2, 4, 6))}
    return (
        _turns("ten turns of text", text, {}),
        _turns("ten turns with pictures", about, pictures),
        _turns("ten turns with a video", [*text[:9], ("Which way does it move?", "")], pictures | video),
    )


def _turns(name: str, dialogue: list[tuple[str, str]], media: dict[int, Medium]) -> Case:
    """The last answer is left out: it is what is asked for."""
    turns: list[tuple[str, tuple[Part, ...]]] = []
    for index, (question, answer) in enumerate(dialogue):
        shown = (media[index],) if index in media else ()
        turns += [("user", (*shown, question)), ("assistant", (answer,))]
    return Case(name, tuple(turns[:-1]))
