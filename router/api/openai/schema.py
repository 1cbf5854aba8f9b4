"""What a client may send to /v1/chat/completions: OpenAI's fields, vLLM's beside them, and a few of our own.

Unknown fields are errors: a wish that is not understood must not be passed over in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

UINT32_MAX = 2**32 - 1
UINT64_MAX = 2**64 - 1
INT64_MIN = -(2**63)

TokenId = Annotated[int, Field(ge=0, le=UINT32_MAX)]
Count = Annotated[int, Field(ge=0, le=UINT32_MAX)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextPart(Body):
    type: Literal["text"]
    text: str


class ImageUrl(Body):
    url: str = Field(description="data:image/...;base64,... or http(s)://... of an allowed host (fetch.allowed_hosts).")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="Without effect: pictures keep their size.")


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Body):
    url: str = Field(
        description="data:video/mp4;base64,... , http(s)://... of an allowed host, or frames in order as "
        "data:video/jpeg;base64,FRAME,FRAME,..."
    )
    frames_per_second: float | None = Field(
        None, ge=0, description="Rate at which frames were taken; without one they count as sampled."
    )


class VideoPart(Body):
    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


def _kind_of_content(value: Any) -> str:
    return "text" if isinstance(value, str) else "parts"


Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Field(fail_fast=True), Tag("parts")],
    Discriminator(_kind_of_content),
]


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is taken as system.")
    content: Content
    name: str | None = Field(None, description="Without effect.")
    # An earlier answer may be sent back as it came; tools are not served.
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Body):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Body):
    """vLLM's field: exactly one form."""

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="A JSON Schema, or its text.")
    regex: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    json_object: bool | None = None


class ChatCompletionRequest(Body):
    messages: Annotated[list[Message], Field(fail_fast=True)]
    model: str = ""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = Field(None, description="Older name of max_completion_tokens.")
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Token id -> bias.")
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    seed: int | None = Field(None, ge=INT64_MIN, le=UINT64_MAX)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    response_format: ResponseFormat | None = None

    # vLLM's
    top_k: int | None = Field(None, ge=-1, le=UINT32_MAX, description="-1 and 0 are off.")
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    repetition_penalty: float | None = None
    guided_regex: str | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    structured_outputs: StructuredOutputs | None = None

    # Ours
    timeout_s: float | None = Field(None, gt=0, description="Deadline; at most defaults.timeout_s.")

    # Accepted without effect.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Not served; may be empty.")
    tool_choice: Literal["none", "auto"] | None = None
