"""From the messages of LanguageService to a checked GenerationRequest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm_service.prompt import MediaSpan, Prompt
from triptych.config import DefaultsSection, LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid
from triptych.sampling import SamplingParameters
from triptych.transport.ticket import Ticket, check_id
from triptych.v1 import common_pb2, language_pb2

MediaSource = Ticket | common_pb2.Media | None


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """What is to be answered and how. sources: where the embedding of each media span comes from, in order."""

    request_id: str
    prompt: Prompt
    sampling: SamplingParameters
    sources: tuple[MediaSource, ...]


class RequestReader:
    """Reads requests for one model. Raises InvalidRequest, naming the field, for all that is wrong with one.

    `limit_setting` names the setting that `max_prompt_tokens` comes from.
    """

    def __init__(
        self,
        model: ModelConfig,
        defaults: DefaultsSection,
        limits: LimitsSection,
        max_prompt_tokens: int,
        limit_setting: str,
    ) -> None:
        self._model = model
        self._defaults = defaults
        self._limits = limits
        self._max_prompt_tokens = max_prompt_tokens
        self._limit_setting = limit_setting

    def read(self, message: language_pb2.PrefillRequest | language_pb2.DecodeRequest) -> GenerationRequest:
        check_id(message.request_id, "request_id")
        sampling = SamplingParameters.from_proto(message.sampling, self._defaults, self._limits)
        self._check_token_ids(sampling)
        prompt = message.prompt
        # Before anything grows with the number: reading a prompt takes far longer than counting it.
        if len(prompt.token_ids) > self._max_prompt_tokens:
            raise self._too_long(len(prompt.token_ids))
        if len(prompt.media) > self._limits.max_media_items:
            raise RequestTooLarge(
                f"prompt.media has {len(prompt.media)} items, at most {self._limits.max_media_items} are allowed "
                "(limits.max_media_items)",
                field="prompt.media",
            )
        spans = [_span(placement, f"prompt.media[{index}]") for index, placement in enumerate(prompt.media)]
        return GenerationRequest(
            request_id=message.request_id,
            prompt=Prompt.build(list(prompt.token_ids), spans, self._model, prompt.num_generated_tokens),
            sampling=sampling,
            sources=tuple(self._source(placement, index) for index, placement in enumerate(prompt.media)),
        )

    def _source(self, placement: language_pb2.MediaPlacement, index: int) -> MediaSource:
        match placement.WhichOneof("source"):
            case "ticket":
                return self._embedding_ticket(placement, f"prompt.media[{index}].ticket")
            case "media":
                return placement.media
            case _:
                return None

    def _embedding_ticket(self, placement: language_pb2.MediaPlacement, field: str) -> Ticket:
        ticket = Ticket.from_proto(placement.ticket)
        expected = (placement.length, self._model.text.hidden_size)
        if ticket.shape != expected:
            raise InvalidRequest(
                f"{field}.shape is {list(ticket.shape)}, expected {list(expected)}: a row for each of its placeholders",
                field=f"{field}.shape",
            )
        return ticket

    def _check_token_ids(self, sampling: SamplingParameters) -> None:
        vocab_size = self._model.text.vocab_size
        biased = [token for token, _ in sampling.logit_bias]
        for field, tokens in (("sampling.stop_token_ids", sampling.stop_token_ids), ("sampling.logit_bias", biased)):
            unknown = [token for token in tokens if token >= vocab_size]
            if unknown:
                raise InvalidRequest(
                    f"{field} holds {unknown[0]}, expected ids below the vocabulary size {vocab_size}", field=field
                )
        if sampling.min_tokens and len({*sampling.stop_token_ids, *self._model.eos_token_ids}) >= vocab_size:
            raise InvalidRequest(
                "sampling.stop_token_ids holds the whole vocabulary, expected to leave a token for sampling.min_tokens",
                field="sampling.stop_token_ids",
            )

    def _too_long(self, num_tokens: int) -> RequestTooLarge:
        return RequestTooLarge(
            f"the prompt has {num_tokens} tokens, at most {self._max_prompt_tokens} leave room for an answer "
            f"({self._limit_setting})",
            field="prompt.token_ids",
        )


def _span(placement: language_pb2.MediaPlacement, field: str) -> MediaSpan:
    kinds: dict[int, Literal["image", "video"]] = {
        common_pb2.MEDIA_KIND_IMAGE: "image",
        common_pb2.MEDIA_KIND_VIDEO: "video",
    }
    kind = kinds.get(placement.kind)
    if kind is None:
        raise InvalidRequest(f"{field}.kind is {placement.kind}, expected an image or a video", field=f"{field}.kind")
    is_paced = 0.0 < placement.second_per_grid_t < 1e6
    if kind == "video" and not is_paced:
        raise InvalidRequest(
            f"{field}.second_per_grid_t is {placement.second_per_grid_t}, expected the seconds between two temporal "
            "steps of a video, above 0",
            field=f"{field}.second_per_grid_t",
        )
    grid = Grid(placement.grid.t, placement.grid.h, placement.grid.w)
    return MediaSpan(placement.offset, placement.length, kind, grid, placement.content_key, placement.second_per_grid_t)
