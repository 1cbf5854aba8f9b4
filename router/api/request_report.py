"""What is told about a request that ended, in the router's log and in the request's span."""

from __future__ import annotations

import logging

from triptych.errors import TriptychError
from triptych.telemetry.logs import figures
from triptych.telemetry.request_scope import Attribute, recorder_here
from triptych.v1 import common_pb2, inference_pb2

logger = logging.getLogger(__name__)


def report_answered(api: str, summary: inference_pb2.GenerateSummary) -> None:
    """Inside the request's scope. Span attributes follow OpenTelemetry's conventions for generative AI."""
    recorder, is_logged = recorder_here(), logger.isEnabledFor(logging.INFO)
    if recorder is None and not is_logged:
        return
    told = _figures(api, summary)
    if is_logged:
        logger.info("answered", extra=figures(**told))
    if recorder is None:
        return
    recorder.describe(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": summary.model,
            "gen_ai.usage.input_tokens": summary.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": summary.usage.completion_tokens,
            "gen_ai.latency.time_to_first_token": summary.timings.time_to_first_token_s,
            "gen_ai.latency.e2e": summary.timings.total_s,
            **told,
        }
    )


def report_failed(api: str, outcome: str, error: TriptychError | None = None) -> None:
    """Inside the request's scope; `outcome` as in the metrics."""
    message = "" if error is None else error.message
    logger.info("failed: %s %s", outcome, message, extra=figures(api=api, outcome=outcome))
    recorder = recorder_here()
    if recorder is not None:
        recorder.describe({"api": api, "outcome": outcome})


def _figures(api: str, summary: inference_pb2.GenerateSummary) -> dict[str, Attribute]:
    usage, timings, route = summary.usage, summary.timings, summary.route
    return {
        "api": api,
        "outcome": "ok",
        "finish_reason": common_pb2.FinishReason.Name(summary.finish_reason).removeprefix("FINISH_REASON_").lower(),
        "prompt_tokens": usage.prompt_tokens,
        "media_tokens": usage.media_tokens,
        "completion_tokens": usage.completion_tokens,
        "attempts": route.attempts,
        "encoder_actors": ",".join(route.encoder_actors),
        "prefill_actor": route.prefill_actor,
        "decode_actor": route.decode_actor,
        **{field.name: getattr(timings, field.name) for field in timings.DESCRIPTOR.fields},
    }
