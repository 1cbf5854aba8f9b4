"""Small builders for the tests of the router."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from router.control.membership import Member, StageName
from triptych.v1 import admin_pb2, common_pb2, inference_pb2

TINY_FOLDER = Path(__file__).parents[2] / "triptych" / "assets" / "tiny"


def make_member(
    actor_id: str, stage: StageName = StageName.ENCODER, *, endpoint: str = "127.0.0.1:1", ready: bool = True
) -> Member:
    return Member(
        actor_id=actor_id,
        stage=stage,
        endpoint=endpoint,
        host_id="host",
        lanes=("shm", "grpc"),
        model_fingerprint="weights",
        dtype=common_pb2.DATA_TYPE_FLOAT32,
        multimodal_disaggregated=stage is not StageName.ENCODER,
        state=admin_pb2.ACTOR_STATE_READY if ready else admin_pb2.ACTOR_STATE_DRAINING,
    )


def png(width: int = 56, height: int = 56, color: str | tuple[int, ...] = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def text_part(text: str) -> inference_pb2.ContentPart:
    return inference_pb2.ContentPart(text=text)


def image_part(data: bytes) -> inference_pb2.ContentPart:
    return inference_pb2.ContentPart(image=inference_pb2.Image(data=data))


def user_request(*parts: inference_pb2.ContentPart, **sampling: object) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        messages=[inference_pb2.ChatMessage(role="user", parts=parts)],
        sampling=common_pb2.SamplingParameters(**sampling),
    )
