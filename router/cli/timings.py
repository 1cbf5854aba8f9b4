"""An answer's figures as text."""

from __future__ import annotations

from collections.abc import Iterator

from triptych.client import Answer


def describe_answer(answer: Answer) -> Iterator[str]:
    """Tokens and why the answer ended; every stage's time; actors and lanes."""
    usage, times, route = answer.usage, answer.timings, answer.route
    yield (
        f"tokens: {usage.prompt_tokens} prompt ({usage.media_tokens} media, {usage.cached_prompt_tokens} cached), "
        f"{usage.completion_tokens} answer, ended by {answer.finish_reason}"
    )
    parts = {
        "prepare": times.prepare_s,
        "encode queue": times.encode_queue_s,
        "encode": times.encode_s,
        "embedding transfer": times.embedding_transfer_s,
        "prefill queue": times.prefill_queue_s,
        "prefill": times.prefill_s,
        "KV transfer": times.kv_transfer_s,
        "decode": times.decode_s,
        "first token": times.time_to_first_token_s,
        "total": times.total_s,
    }
    yield "times in ms: " + ", ".join(f"{name} {seconds * 1000:.1f}" for name, seconds in parts.items())
    encoders, lanes = ", ".join(route.encoder_actors), ", ".join(route.embedding_lanes)
    yield (
        f"route: encode {encoders or '-'} -[{lanes or '-'}]-> prefill {route.prefill_actor} "
        f"-[{route.kv_lane or '-'}]-> decode {route.decode_actor}, attempts {route.attempts}"
    )
