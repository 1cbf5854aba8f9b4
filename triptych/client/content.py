"""Chat messages out of what a program has at hand: strings, files, bytes, Pillow pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from triptych.errors import InvalidRequest
from triptych.v1 import common_pb2, inference_pb2

# A file's path, a file's bytes, or a picture.
ImageSource = str | os.PathLike[str] | bytes | PillowImage.Image
# A file's path, a file's bytes, or the frames in order.
VideoSource = str | os.PathLike[str] | bytes | Sequence[ImageSource]
Part = str | inference_pb2.ContentPart
# {"role": "user", "content": "..."} or {"role": ..., "content": [parts]} stands for a message.
Message = inference_pb2.ChatMessage | Mapping[str, Any]

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def image(source: ImageSource) -> inference_pb2.ContentPart:
    """A picture as part of a message. A Pillow picture travels as PNG, a file as it is."""
    return inference_pb2.ContentPart(image=inference_pb2.Image(data=_image_bytes(source)))


def video(source: VideoSource, *, frames_per_second: float = 0.0) -> inference_pb2.ContentPart:
    """A video as part of a message. `frames_per_second` is the rate of frames; without one they count as sampled."""
    if isinstance(source, str | os.PathLike | bytes):
        return inference_pb2.ContentPart(video=inference_pb2.Video(data=_file_bytes(source)))
    frames = common_pb2.VideoFrames(
        frames=[_image_bytes(frame) for frame in source], frames_per_second=frames_per_second
    )
    return inference_pb2.ContentPart(video=inference_pb2.Video(frames=frames))


def user(*parts: Part) -> inference_pb2.ChatMessage:
    """What the user says: strings, `image(...)` and `video(...)`, in order."""
    return _message("user", parts)


def system(text: str) -> inference_pb2.ChatMessage:
    """How the model should behave."""
    return _message("system", [text])


def assistant(text: str) -> inference_pb2.ChatMessage:
    """An earlier answer."""
    return _message("assistant", [text])


def to_messages(
    question: str | Sequence[Message], images: Sequence[ImageSource], videos: Sequence[VideoSource]
) -> list[inference_pb2.ChatMessage]:
    """A question with its pictures and videos before it; or the messages of a chat, whose media are parts of them.

    Raises InvalidRequest for messages with `images` or `videos` beside them, and for a message of another form.
    """
    if isinstance(question, str):
        media = [*(image(source) for source in images), *(video(source) for source in videos)]
        return [user(*media, question)]
    if images or videos:
        raise InvalidRequest(
            "images and videos go with a question; in a chat they are parts of a message: user(image(...), 'what?')",
            field="images" if images else "videos",
        )
    return [_to_message(message, index) for index, message in enumerate(question)]


def _to_message(message: Message, index: int) -> inference_pb2.ChatMessage:
    if isinstance(message, inference_pb2.ChatMessage):
        return message
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise InvalidRequest(
            f"messages[{index}] is {message!r:.80}, expected user(...), system(...), assistant(...) "
            "or a mapping with role and content",
            field=f"messages[{index}]",
        )
    content = message["content"]
    return _message(message["role"], [content] if isinstance(content, str) else content)


def _message(role: str, parts: Sequence[Part]) -> inference_pb2.ChatMessage:
    return inference_pb2.ChatMessage(
        role=role,
        parts=[inference_pb2.ContentPart(text=part) if isinstance(part, str) else part for part in parts],
    )


def _image_bytes(source: ImageSource) -> bytes:
    if not isinstance(source, PillowImage.Image):
        return _file_bytes(source)
    buffer = io.BytesIO()
    picture = source if source.mode in _PNG_MODES else source.convert("RGB")
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _file_bytes(source: str | os.PathLike[str] | bytes) -> bytes:
    return source if isinstance(source, bytes) else Path(source).expanduser().read_bytes()
