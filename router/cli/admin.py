"""`triptych topology` and `triptych scale`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from router.control.membership import StageName
from triptych.client import Client
from triptych.errors import InvalidRequest, NotFound, Unavailable
from triptych.v1 import admin_pb2


def run_topology(client: Client) -> int:
    """Prints every stage and actor, with what each actor says about itself."""
    topology = client.topology()
    infos = {}
    for actor_id in running_actors(topology):
        try:
            infos[actor_id] = client.actor_info(actor_id)
        except (NotFound, Unavailable):
            continue  # It went away between the two questions.
    print(f"{topology.model}, {topology.mode}")
    for line in topology_lines(topology.stages, infos):
        print(line)
    return 0


def run_scale(client: Client, wishes: Sequence[str], *, wait: bool, timeout_s: float) -> int:
    """Scales one stage after the other, those that grow first: what is taken away may need what was added. Then moves
    actors."""
    moves = [move for wish in wishes if (move := parse_move(wish)) is not None]
    counts = [parse_wish(wish) for wish in wishes if parse_move(wish) is None]
    before = {StageName.from_proto(stage.stage): stage.wanted_actors for stage in client.topology().stages}
    for stage, count in sorted(counts, key=lambda wish: (wish[1] or 0) < before.get(wish[0], 0)):
        status = client.scale(stage, count, wait=wait, timeout_s=timeout_s)
        print(f"{stage}: {num_ready(status)} ready, {status.wanted_actors} wanted")
    for from_stage, to_stage, count in moves:
        for _ in range(count):
            moved = client.move(from_stage, to_stage, timeout_s=timeout_s)
            print(f"{moved.actor_id}: {from_stage} to {to_stage} in {1e3 * moved.seconds:.0f} ms")
    return 0


def parse_move(wish: str) -> tuple[StageName, StageName, int] | None:
    """`prefill:decode=1`: so many actors move from one stage to the other; None for another wish."""
    stages, _, number = wish.replace("-", "_").partition("=")
    from_stage, separator, to_stage = stages.partition(":")
    if not separator:
        return None
    if not {from_stage, to_stage} <= set(StageName) or not number.isdecimal():
        raise InvalidRequest(
            f"{wish!r}: expected STAGE:STAGE=N, with stages of {', '.join(StageName)} and a number", field="stage"
        )
    return StageName(from_stage), StageName(to_stage), int(number)


def parse_wish(wish: str) -> tuple[StageName, int | None]:
    """`encoder=3`, or `encoder=auto` (None): by the policy again. Raises InvalidRequest saying what it expected."""
    name, separator, number = wish.partition("=")
    name = name.replace("-", "_")
    is_automatic = number == "auto"
    if name not in list(StageName) or not separator or not (is_automatic or number.isdecimal()):
        stages = ", ".join(StageName)
        raise InvalidRequest(
            f"{wish!r}: expected STAGE=N, with a stage of {stages} and a number or auto", field="stage"
        )
    return StageName(name), None if is_automatic else int(number)


def running_actors(topology: admin_pb2.GetTopologyResponse) -> list[str]:
    """Ids of the actors that can be asked."""
    states = (admin_pb2.ACTOR_STATE_READY, admin_pb2.ACTOR_STATE_DRAINING)
    return [actor.actor_id for stage in topology.stages for actor in stage.actors if actor.state in states]


def num_ready(stage: admin_pb2.StageStatus) -> int:
    return sum(actor.state == admin_pb2.ACTOR_STATE_READY for actor in stage.actors)


def topology_lines(stages: Sequence[admin_pb2.StageStatus], infos: Mapping[str, admin_pb2.ActorInfo]) -> Iterator[str]:
    """A line for each stage that has or wants actors, two for each actor; `infos` by actor id, where it answered."""
    for stage in stages:
        if not stage.wanted_actors and not stage.actors:
            continue
        yield f"{StageName.from_proto(stage.stage)}: {num_ready(stage)} ready, {stage.wanted_actors} wanted"
        if stage.obstacle:
            yield f"  {stage.obstacle}"
        for actor in stage.actors:
            state = admin_pb2.ActorState.Name(actor.state).removeprefix("ACTOR_STATE_").lower()
            yield f"  {actor.actor_id or 'not ready yet'}  {state}  {actor.endpoint}".rstrip()
            if actor.actor_id in infos:
                yield f"    {_described(infos[actor.actor_id])}"


def _described(info: admin_pb2.ActorInfo) -> str:
    """Weights, work done, and work in hand."""
    visual, language = info.weights.num_visual_parameters, info.weights.num_language_parameters
    weights = [f"{count / 1e6:.1f} M {kind}" for count, kind in ((visual, "visual"), (language, "language")) if count]
    parts = [" + ".join(weights) + " parameters"]
    if info.HasField("encoder"):
        encoder = info.encoder
        from_host = f", {encoder.host_cache_hits} of them from host memory" if encoder.host_cache_hits else ""
        parts.append(f"{encoder.accepted_items} items taken ({encoder.cache_hits} from cache{from_host})")
        if encoder.num_batches:
            parts.append(f"{encoder.encoded_items / encoder.num_batches:.1f} items a batch")
        parts.append(f"{encoder.pending_patches} patches pending")
    if info.HasField("language"):
        work = info.language
        parts.append(f"{work.finished_requests} requests done, {work.running_requests} running")
        parts.append(f"{work.generated_tokens} tokens")
        parts.append(f"{work.held_pages} of {work.total_pages} pages held")
    return "; ".join([*parts, f"{info.leases.held_leases} leases"])
