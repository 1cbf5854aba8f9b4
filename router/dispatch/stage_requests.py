"""The messages of one walk: what each chosen actor is asked, all made before the first call."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.control.membership import Member
from router.dispatch.placement import Placement
from router.dispatch.prepared_request import MediaItem, PreparedRequest
from router.dispatch.tickets import TicketMaker
from triptych.v1 import common_pb2, encoder_pb2, language_pb2


@dataclass(frozen=True)
class EncodeShare:
    """The part of a request's media that one encoder gets."""

    encoder: Member
    request: encoder_pb2.EncodeRequest
    num_patches: int
    client_fields: dict[str, str]

    @property
    def ticket_ids(self) -> list[str]:
        """Tickets of the share's items."""
        return [item.ticket.ticket_id for item in self.request.items]


@dataclass(frozen=True)
class StageRequests:
    """`walk_id` is new for every walk, so that an actor never mixes up two attempts at one request.

    `client_fields` maps the names that a stage gives to media in its messages to those in the client's request.
    """

    walk_id: str
    shares: tuple[EncodeShare, ...]
    prefill: language_pb2.PrefillRequest | None
    decode: language_pb2.DecodeRequest
    client_fields: dict[str, str]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens to prefill."""
        return len(self.decode.prompt.token_ids)

    @property
    def num_patches(self) -> int:
        """Of all media."""
        return sum(item.grid.t * item.grid.h * item.grid.w for item in self.decode.prompt.media)

    @property
    def num_kv_tokens(self) -> int:
        """Tokens whose keys and values the decode actor holds at most."""
        return self.num_prompt_tokens + self.num_choices * self.decode.sampling.max_tokens

    @property
    def num_choices(self) -> int:
        """Answers that are generated at once."""
        return self.decode.sampling.n

    @classmethod
    def make(
        cls,
        request: PreparedRequest,
        generated: Sequence[int],
        placement: Placement,
        tickets: TicketMaker,
        router_id: str,
    ) -> StageRequests:
        """The messages that have `request` answered from its token number len(generated) on."""
        walk_id = f"{request.request_id}:{uuid.uuid4().hex[:8]}"
        embedding_tickets = [
            tickets.embedding_ticket(item, encoder)
            for item, encoder in zip(request.media, placement.encoders, strict=False)
        ]
        prompt = _prompt(request, generated, embedding_tickets)
        sampling = _remaining_sampling(request, len(generated))
        shares = _shares(walk_id, request.media, placement.encoders, embedding_tickets)
        decode = language_pb2.DecodeRequest(request_id=walk_id, router_id=router_id, prompt=prompt, sampling=sampling)
        client_fields = _client_fields(request.media)
        if placement.prefill is None:
            return cls(walk_id, shares, None, decode, client_fields)
        kv_ticket = tickets.kv_ticket(len(prompt.token_ids), placement.prefill)
        decode.kv_ticket.CopyFrom(kv_ticket)
        prefill = language_pb2.PrefillRequest(request_id=walk_id, prompt=prompt, sampling=sampling, kv_ticket=kv_ticket)
        return cls(walk_id, shares, prefill, decode, client_fields)


def _client_fields(media: Sequence[MediaItem]) -> dict[str, str]:
    """What a language actor calls its fields -> what the client calls them; longer names before their beginnings."""
    fields = {"prompt.token_ids": "messages"}
    for index, item in enumerate(media):
        fields[f"prompt.media[{index}].media"] = item.field
        fields[f"prompt.media[{index}]"] = item.field
    return fields


def _prompt(
    request: PreparedRequest, generated: Sequence[int], embedding_tickets: Sequence[common_pb2.Ticket]
) -> language_pb2.Prompt:
    prompt = language_pb2.Prompt(token_ids=[*request.token_ids, *generated], num_generated_tokens=len(generated))
    for index, item in enumerate(request.media):
        placement = prompt.media.add(
            offset=item.offset,
            length=item.num_tokens,
            kind=item.media.kind,
            grid=item.grid,
            second_per_grid_t=item.second_per_grid_t,
            content_key=item.content_key,
        )
        if embedding_tickets:
            placement.ticket.CopyFrom(embedding_tickets[index])
        else:
            placement.media.CopyFrom(item.media)
    return prompt


def _remaining_sampling(request: PreparedRequest, num_generated: int) -> common_pb2.SamplingParameters:
    """The request's own parameters, less what was generated already. Stop strings are the router's work."""
    sampling = request.sampling
    if not num_generated and not sampling.stop:
        return sampling.to_proto()
    return replace(
        sampling,
        max_tokens=sampling.max_tokens - num_generated,
        min_tokens=max(sampling.min_tokens - num_generated, 0),
        stop=(),
    ).to_proto()


def _shares(
    walk_id: str,
    media: Sequence[MediaItem],
    encoders: Sequence[Member],
    embedding_tickets: Sequence[common_pb2.Ticket],
) -> tuple[EncodeShare, ...]:
    by_encoder: dict[Member, list[int]] = {}
    for index, encoder in enumerate(encoders):
        by_encoder.setdefault(encoder, []).append(index)
    return tuple(
        EncodeShare(
            encoder=encoder,
            request=encoder_pb2.EncodeRequest(
                request_id=walk_id,
                items=[
                    encoder_pb2.EncodeItem(ticket=embedding_tickets[index], media=media[index].media)
                    for index in indices
                ],
            ),
            num_patches=sum(media[index].num_patches for index in indices),
            client_fields={f"items[{number}].media": media[index].field for number, index in enumerate(indices)},
        )
        for encoder, indices in by_encoder.items()
    )
