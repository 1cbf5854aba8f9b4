"""A router without a system behind it: notes what it was asked and answers what the test set."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from triptych.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2, inference_pb2_grpc


class FakeRouter(inference_pb2_grpc.InferenceServiceServicer, admin_pb2_grpc.AdminServiceServicer):
    """Answers every question with `pieces`, unless `failure` is set."""

    def __init__(self) -> None:
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.scales: list[admin_pb2.ScaleRequest] = []
        self.pieces = ["It is ", "a red circle."]
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.stages = [
            admin_pb2.StageStatus(
                stage=common_pb2.STAGE_ENCODER,
                wanted_actors=2,
                actors=[
                    admin_pb2.ActorStatus(
                        actor_id="encoder-1", endpoint="127.0.0.1:1", state=admin_pb2.ACTOR_STATE_READY
                    ),
                    admin_pb2.ActorStatus(state=admin_pb2.ACTOR_STATE_STARTING),
                ],
            ),
            admin_pb2.StageStatus(
                stage=common_pb2.STAGE_DECODE,
                wanted_actors=1,
                actors=[
                    admin_pb2.ActorStatus(
                        actor_id="decode-1", endpoint="127.0.0.1:2", state=admin_pb2.ACTOR_STATE_READY
                    )
                ],
            ),
        ]

    def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> Iterator[Any]:
        self.requests.append(request)
        if self.failure is not None:
            context.abort(*self.failure)
        for piece in self.pieces:
            yield inference_pb2.GenerateResponse(chunk=inference_pb2.TokenChunk(text=piece, token_ids=[7]))
        summary = inference_pb2.GenerateSummary(
            finish_reason=common_pb2.FINISH_REASON_STOP,
            usage=common_pb2.Usage(prompt_tokens=30, media_tokens=16, completion_tokens=2),
            timings=inference_pb2.Timings(encode_s=0.0125, total_s=0.5),
            route=inference_pb2.Route(
                encoder_actors=["encoder-1"],
                prefill_actor="prefill-1",
                decode_actor="decode-1",
                embedding_lanes=["shm"],
                kv_lane="grpc",
                attempts=1,
            ),
        )
        yield inference_pb2.GenerateResponse(summary=summary)

    def GetTopology(self, request: admin_pb2.GetTopologyRequest, context: Any) -> admin_pb2.GetTopologyResponse:
        return admin_pb2.GetTopologyResponse(mode="disaggregated", model="tiny", stages=self.stages)

    def GetActorInfo(self, request: admin_pb2.GetActorInfoRequest, context: Any) -> admin_pb2.GetActorInfoResponse:
        if request.actor_id != "encoder-1":
            context.abort(grpc.StatusCode.NOT_FOUND, "it went away")
        info = admin_pb2.ActorInfo(
            actor_id="encoder-1",
            weights=admin_pb2.Weights(num_visual_parameters=1_200_000),
            encoder=admin_pb2.EncoderCounters(accepted_items=5, cache_hits=2),
        )
        return admin_pb2.GetActorInfoResponse(info=info)

    def Scale(self, request: admin_pb2.ScaleRequest, context: Any) -> admin_pb2.ScaleResponse:
        self.scales.append(request)
        ready = admin_pb2.ActorStatus(state=admin_pb2.ACTOR_STATE_READY)
        status = admin_pb2.StageStatus(
            stage=request.stage, wanted_actors=request.num_actors, actors=[ready] * request.num_actors
        )
        return admin_pb2.ScaleResponse(status=status)


@contextmanager
def serving(router: FakeRouter) -> Iterator[str]:
    """The endpoint at which `router` answers."""
    server = grpc.server(ThreadPoolExecutor(2))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(router, server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
