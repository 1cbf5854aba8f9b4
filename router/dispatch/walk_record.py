"""What a walk has learned so far: the answers of the stages, and which actors failed it."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.dispatch.placement.placement import Placement
from router.dispatch.token_queue import Tokens
from triptych.v1 import encoder_pb2, inference_pb2, language_pb2


@dataclass
class WalkRecord:
    """Filled by the legs as they end, so that a walk that was stopped half-way can be told about too."""

    placement: Placement
    encode_results: list[encoder_pb2.EncodeResult] = field(default_factory=list)
    prefill: language_pb2.PrefillResponse | None = None
    decode: language_pb2.DecodeResponse | None = None
    encode_call_overhead_s: float = 0.0  # the slowest encode call less the encoder's own time
    num_decoded: int = 0  # tokens that came on the step stream
    unfinished: set[int] = field(default_factory=lambda: {0})  # answers whose last token was not passed on
    failed_actors: set[str] = field(default_factory=set)

    @property
    def is_answered(self) -> bool:
        """The last token of every answer was passed on."""
        return not self.unfinished

    def note_tokens(self, tokens: Tokens) -> None:
        """They are passed on."""
        if tokens.is_last:
            self.unfinished.discard(tokens.choice_index)

    @property
    def cached_prompt_tokens(self) -> int:
        """Prompt tokens found in the prefix cache."""
        return self._prefilled.cached_prompt_tokens

    def note_encoded(self, response: encoder_pb2.EncodeResponse, call_s: float) -> None:
        """An encoder's answer, and how long the call took."""
        encoder_s = max((r.queue_s + r.preprocess_s + r.encode_s for r in response.results), default=0.0)
        self.encode_call_overhead_s = max(self.encode_call_overhead_s, call_s - encoder_s)
        self.encode_results.extend(response.results)

    @property
    def encode_s(self) -> float:
        """By the LLM actor's own tower, 0 where an encoder did it."""
        return self._prefilled.encode_s

    @property
    def embedding_transfer_s(self) -> float:
        return self._prefilled.embedding_transfer_s

    def fill_timings(self, timings: inference_pb2.Timings) -> None:
        """Writes the stages' own figures; encode figures are of the slowest item."""
        prefilled = self._prefilled
        encoded = max(self.encode_results, key=lambda result: result.preprocess_s + result.encode_s, default=None)
        timings.encode_queue_s = max((r.queue_s for r in self.encode_results), default=prefilled.encode_queue_s)
        timings.encode_s = encoded.preprocess_s + encoded.encode_s if encoded else prefilled.encode_s
        timings.embedding_transfer_s = prefilled.embedding_transfer_s
        timings.prefill_queue_s = prefilled.queue_s
        timings.prefill_s = prefilled.prefill_s
        if self.decode is not None:
            timings.kv_transfer_s = self.decode.kv_transfer_s
            timings.decode_s = self.decode.decode_s

    def fill_route(self, route: inference_pb2.Route) -> None:
        """Writes who worked on the request and over which lanes."""
        placement = self.placement
        route.encoder_actors.extend(dict.fromkeys(member.actor_id for member in placement.encoders))
        route.prefill_actor = placement.first_language_actor.actor_id
        route.decode_actor = placement.decode.actor_id
        route.encode_reason = placement.encode_reason
        route.embedding_lanes.extend(self._prefilled.embedding_lanes)
        if self.decode is not None:
            route.kv_lane = self.decode.kv_lane

    @property
    def _prefilled(self) -> language_pb2.PrefillResponse:
        if self.prefill is not None:
            return self.prefill
        return self.decode.prefill if self.decode is not None else language_pb2.PrefillResponse()
