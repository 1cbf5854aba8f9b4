"""What `triptych topology` says of an encoder."""

from router.cli.admin import topology_lines
from triptych.v1 import admin_pb2, common_pb2


def test_an_encoders_hits_by_tier_and_its_batches() -> None:
    actor = admin_pb2.ActorStatus(actor_id="encoder-1", endpoint="127.0.0.1:1", state=admin_pb2.ACTOR_STATE_READY)
    stage = admin_pb2.StageStatus(stage=common_pb2.STAGE_ENCODER, wanted_actors=1, actors=[actor])
    counters = admin_pb2.EncoderCounters(
        accepted_items=12, cache_hits=5, host_cache_hits=2, encoded_items=7, num_batches=2
    )
    *_, line = topology_lines([stage], {"encoder-1": admin_pb2.ActorInfo(encoder=counters)})
    assert "12 items taken (5 from cache, 2 of them from host memory); 3.5 items a batch" in line


def test_why_wanted_actors_are_not_there() -> None:
    stage = admin_pb2.StageStatus(stage=common_pb2.STAGE_DECODE, wanted_actors=1, obstacle="the cluster lacks GPUs")
    assert list(topology_lines([stage], {})) == ["decode: 0 ready, 1 wanted", "  the cluster lacks GPUs"]
