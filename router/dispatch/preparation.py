"""From a client's request to what the walk needs: checked, measured, tokenized. Reads headers, decodes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

from PIL import Image

from router.dispatch.cache_map import prefix_keys
from router.dispatch.client_fields import in_client_terms
from router.dispatch.prepared_request import MediaItem, PreparedRequest
from router.dispatch.request_check import check_request
from triptych.config import DeploymentConfig
from triptych.errors import InvalidRequest, RequestTooLarge
from triptych.media import content_key, mute_pillow
from triptych.media.layout import MediaLayout, MediaProcessing, media_layout
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.detokenizer import IncrementalDetokenizer
from triptych.models.qwen2_5_vl.grid import MediaGrid
from triptych.models.qwen2_5_vl.prompt import ChatMessage, MediaPart, Prompt, PromptBuilder, TextPart
from triptych.sampling import SamplingParameters
from triptych.transport.ticket import new_id
from triptych.v1 import common_pb2, inference_pb2

# A text up to that long is prepared on the event loop.
_QUICK_PARTS, _QUICK_CHARACTERS = 16, 2_000


class Preparation:
    """Prepares requests on threads of its own; the event loop only waits."""

    def __init__(self, config: DeploymentConfig, model_name: str, folder: Path) -> None:
        self._limits = config.limits
        self._defaults = config.defaults
        self._model_name = model_name
        self._max_context_tokens = max_context_tokens(config, ModelConfig.from_folder(folder))
        self._processing = MediaProcessing.from_folder(folder)
        self._prompts = PromptBuilder(folder)
        self._threads = ThreadPoolExecutor(config.router.media_workers, thread_name_prefix="preparation")
        mute_pillow()
        self._warm_up()

    async def prepare(self, request: inference_pb2.GenerateRequest) -> PreparedRequest:
        """Raises InvalidRequest, RequestTooLarge or NotFound, whose field is the path of what is wrong in the request,
        as `messages[1].parts[0].image.data`."""
        if _is_quick(request):
            # The way to a thread and back would take longer.
            return self.prepare_now(request)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.prepare_now, request)

    def prepare_now(self, request: inference_pb2.GenerateRequest) -> PreparedRequest:
        """The same, on the caller's thread."""
        begun_at = time.monotonic()
        check_request(request, self._model_name, self._limits)
        self._check_text_length(request)
        sampling = SamplingParameters.from_proto(request.sampling, self._defaults, self._limits)
        if sampling.constraint is not None:
            sampling.constraint.check_grammar()
        media = self._media_of(request)
        layouts = [media_layout(item, self._processing, self._limits, field) for field, item in media]
        grids = [_media_grid(item, layout) for (_, item), layout in zip(media, layouts, strict=True)]
        prompt = self._build_prompt(request, grids)
        num_free_tokens = self._num_free_tokens(prompt)
        items = _items(media, layouts, prompt)
        return PreparedRequest(
            request_id=request.request_id or new_id(),
            token_ids=prompt.token_ids,
            media=items,
            sampling=_within(sampling, num_free_tokens),
            prefix_keys=prefix_keys(prompt.token_ids, items),
            prepare_s=time.monotonic() - begun_at,
        )

    def _warm_up(self) -> None:
        """No request pays for code that loads on first use: Pillow's formats, the chat template."""
        Image.init()
        self._prompts.build([ChatMessage("user", (TextPart("warm-up"),))], [])

    def detokenizer(self) -> IncrementalDetokenizer:
        """For the tokens of one answer."""
        return self._prompts.detokenizer()

    def bytes_of(self, token_id: int) -> bytes:
        """What a token stands for."""
        return self._prompts.bytes_of(token_id)

    def close(self) -> None:
        """Lets the threads end; requests that still wait for one are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _media_of(self, request: inference_pb2.GenerateRequest) -> list[tuple[str, common_pb2.Media]]:
        """Every picture and video in the order of the messages, with its place in the request."""
        return [
            (f"messages[{index}].parts[{number}].{part.WhichOneof('part')}", self._media(part))
            for index, message in enumerate(request.messages)
            for number, part in enumerate(message.parts)
            if part.WhichOneof("part") != "text"
        ]

    def _media(self, part: inference_pb2.ContentPart) -> common_pb2.Media:
        if part.WhichOneof("part") == "image":
            kind = common_pb2.MEDIA_KIND_IMAGE
            return common_pb2.Media(kind=kind, options=self._processing.default_options(kind), data=part.image.data)
        kind = common_pb2.MEDIA_KIND_VIDEO
        options = self._processing.default_options(kind)
        if part.video.WhichOneof("source") == "frames":
            return common_pb2.Media(kind=kind, options=options, frames=part.video.frames)
        return common_pb2.Media(kind=kind, options=options, data=part.video.data)

    def _check_text_length(self, request: inference_pb2.GenerateRequest) -> None:
        """Refuses what can't fit before all of it is tokenized."""
        text = "\n".join(part.text for message in request.messages for part in message.parts)
        if self._prompts.is_far_longer(text, self._max_context_tokens):
            raise self._too_long(f"of more than {self._max_context_tokens} tokens")

    def _build_prompt(self, request: inference_pb2.GenerateRequest, media: Sequence[MediaGrid]) -> Prompt:
        messages = [_chat_message(message) for message in request.messages]
        try:
            return self._prompts.build(messages, media)
        except InvalidRequest as error:
            content_fields = {
                f"messages[{index}].content": f"messages[{index}].parts" for index in range(len(messages))
            }
            raise in_client_terms(error, content_fields) from None

    def _num_free_tokens(self, prompt: Prompt) -> int:
        """Tokens that the answer may have; RequestTooLarge when there is no room for one."""
        num_prompt_tokens = len(prompt.token_ids)
        if num_prompt_tokens < self._max_context_tokens:
            return self._max_context_tokens - num_prompt_tokens
        num_media_tokens = sum(placement.length for placement in prompt.placements)
        raise self._too_long(f"of {num_prompt_tokens} tokens ({num_media_tokens} of them for pictures and videos)")

    def _too_long(self, length: str) -> RequestTooLarge:
        return RequestTooLarge(
            f"messages make a prompt {length}, expected fewer than {self._max_context_tokens}, the context length "
            "(of the model, or stages.*.max_context_tokens where that is set)",
            field="messages",
        )


def _within(sampling: SamplingParameters, num_free_tokens: int) -> SamplingParameters:
    """The same for an answer that has room for so many tokens."""
    if sampling.max_tokens <= num_free_tokens:
        return sampling
    min_tokens = min(sampling.min_tokens, num_free_tokens)
    return replace(sampling, max_tokens=num_free_tokens, min_tokens=min_tokens)


def _is_quick(request: inference_pb2.GenerateRequest) -> bool:
    """A short text: tokenized within a fraction of a millisecond. A grammar may take long."""
    parts = [part for message in request.messages for part in message.parts]
    return (
        len(parts) <= _QUICK_PARTS
        and all(part.WhichOneof("part") == "text" for part in parts)
        and sum(len(part.text) for part in parts) <= _QUICK_CHARACTERS
        and not request.sampling.HasField("constraint")
    )


def max_context_tokens(config: DeploymentConfig, model: ModelConfig) -> int:
    """Most tokens that prompt and answer may have together: what every stage of the language model allows."""
    stages = (config.stages.prefill, config.stages.decode, config.stages.prefill_decode)
    configured = [stage.max_context_tokens for stage in stages if stage.max_context_tokens]
    return min([model.text.max_position_embeddings, *configured])


def _items(
    media: Sequence[tuple[str, common_pb2.Media]], layouts: Sequence[MediaLayout], prompt: Prompt
) -> tuple[MediaItem, ...]:
    return tuple(
        MediaItem(
            media=item,
            content_key=content_key(item),
            grid=common_pb2.Grid(t=layout.grid.t, h=layout.grid.h, w=layout.grid.w),
            second_per_grid_t=layout.second_per_grid_t,
            offset=placement.offset,
            num_tokens=placement.length,
            field=field,
        )
        for (field, item), layout, placement in zip(media, layouts, prompt.placements, strict=True)
    )


def _media_grid(media: common_pb2.Media, layout: MediaLayout) -> MediaGrid:
    return MediaGrid(_kind(media), layout.grid, layout.second_per_grid_t)


def _kind(media: common_pb2.Media) -> Literal["image", "video"]:
    return "image" if media.kind == common_pb2.MEDIA_KIND_IMAGE else "video"


def _chat_message(message: inference_pb2.ChatMessage) -> ChatMessage:
    return ChatMessage(message.role, tuple(_content(part) for part in message.parts))


def _content(part: inference_pb2.ContentPart) -> TextPart | MediaPart:
    match part.WhichOneof("part"):
        case "image":
            return MediaPart("image")
        case "video":
            return MediaPart("video")
        case _:
            return TextPart(part.text)
