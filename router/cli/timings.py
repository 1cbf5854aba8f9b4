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
    yield f"route: {_path(answer)}, attempts {route.attempts}"


def _path(answer: Answer) -> str:
    """Who did what in turn, and the lanes between them; an actor that does several things stands there once."""
    route = answer.route
    encoders = [actor for actor in route.encoder_actors if actor != route.prefill_actor]
    lanes = ", ".join(route.embedding_lanes) or "-"
    is_one = route.prefill_actor == route.decode_actor
    has_own_tower = answer.usage.media_tokens > 0 and not encoders
    work = "prefill and decode" if is_one else "prefill"
    if has_own_tower:
        work = "encode, prefill and decode" if is_one else "encode and prefill"
    path = f"{work} {route.prefill_actor}"
    if encoders:
        path = f"encode {', '.join(encoders)} -[{lanes}]-> {path}"
    return path if is_one else f"{path} -[{route.kv_lane or '-'}]-> decode {route.decode_actor}"
