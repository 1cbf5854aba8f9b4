"""The three panels: which actors stand in each, and what is told about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from router.cli.top.sample import Counter, Window
from triptych.v1 import admin_pb2, common_pb2


@dataclass(frozen=True)
class ActorRow:
    """One actor. `state` is an admin_pb2.ActorState; rate in the panel's unit; load: what waits or runs there; fill:
    part of its room that is taken, 0 to 1."""

    actor_id: str
    state: admin_pb2.ActorState
    rate: float = 0.0
    load: int = 0
    fill: float = 0.0


MakeRow = Callable[[admin_pb2.ActorInfo, float], ActorRow]


@dataclass(frozen=True)
class Bar:
    """How much of a room is taken."""

    label: str
    value: float
    limit: float


@dataclass(frozen=True)
class PanelView:
    """Everything that a panel shows. rate: of all its actors, in `unit`; facts: label and text."""

    name: str
    num_ready: int
    num_wanted: int
    unit: str
    rate: float
    load_label: str
    bars: tuple[Bar, ...]
    facts: tuple[tuple[str, str], ...]
    rows: tuple[ActorRow, ...]


@dataclass(frozen=True)
class _Members:
    """The actors of a panel: all that there are, and what those said that answered."""

    statuses: tuple[admin_pb2.ActorStatus, ...]
    infos: tuple[admin_pb2.ActorInfo, ...]
    num_wanted: int

    @property
    def num_ready(self) -> int:
        return sum(status.state == admin_pb2.ACTOR_STATE_READY for status in self.statuses)

    def total(self, counter: Counter) -> float:
        return sum(map(counter, self.infos))


def panel_views(window: Window) -> tuple[PanelView, PanelView, PanelView]:
    """encode, prefill, decode. Actors that do two of these stand in both, and so do those that carry a tower."""
    stages = common_pb2.STAGE_PREFILL, common_pb2.STAGE_DECODE
    prefill, decode = (_members(window, (stage, common_pb2.STAGE_PREFILL_DECODE)) for stage in stages)
    return _encode(window, _encoders(window)), _prefill(window, prefill), _decode(window, decode)


def _encode(window: Window, members: _Members) -> PanelView:
    def counter(info: admin_pb2.ActorInfo) -> float:
        return info.encoder.encoded_patches

    def row(info: admin_pb2.ActorInfo, rate: float) -> ActorRow:
        encoder = info.encoder
        fill = encoder.pending_patches / max(1, encoder.max_pending_patches)
        return ActorRow(info.actor_id, info.state, rate, encoder.pending_patches, fill)

    rows = _rows(window, members, counter, row)
    items = sum(window.growth(info.actor_id, lambda i: i.encoder.accepted_items) for info in members.infos)
    hits = sum(window.growth(info.actor_id, lambda i: i.encoder.cache_hits) for info in members.infos)
    batches = sum(window.growth(info.actor_id, lambda i: i.encoder.num_batches) for info in members.infos)
    patches = sum(window.growth(info.actor_id, counter) for info in members.infos)
    cached = members.total(lambda i: i.encoder.cache_bytes + i.encoder.host_cache_bytes)
    return PanelView(
        "encode",
        members.num_ready,
        members.num_wanted,
        "patches/s",
        sum(r.rate for r in rows),
        "queue",
        (
            Bar(
                "queue",
                members.total(lambda i: i.encoder.pending_patches),
                members.total(lambda i: i.encoder.max_pending_patches),
            ),
        ),
        (
            ("pictures", f"{_rate(window, members, lambda i: i.encoder.accepted_items):.1f}/s"),
            ("patches a batch", short(patches / batches) if batches else "–"),
            ("cache hits", _share(hits, items)),
            ("cache", in_bytes(cached)),
            _leases(members),
        ),
        rows,
    )


def _prefill(window: Window, members: _Members) -> PanelView:
    def counter(info: admin_pb2.ActorInfo) -> float:
        return info.language.prompt_tokens

    rows = _rows(window, members, counter, _language_row)
    prompt = sum(window.growth(info.actor_id, counter) for info in members.infos)
    hits = sum(window.growth(info.actor_id, lambda i: i.language.cached_prompt_tokens) for info in members.infos)
    return PanelView(
        "prefill",
        members.num_ready,
        members.num_wanted,
        "prompt tokens/s",
        sum(r.rate for r in rows),
        "reqs",
        (_kv_pages(members),),
        (
            ("requests", _requests(members)),
            ("prefix hits", _share(hits, prompt)),
            ("embeddings", f"{_rate(window, members, lambda i: i.language.accepted_embeddings):.1f}/s"),
            *_lanes(window, members),
            _leases(members),
        ),
        rows,
    )


def _decode(window: Window, members: _Members) -> PanelView:
    def counter(info: admin_pb2.ActorInfo) -> float:
        return info.language.generated_tokens

    rows = _rows(window, members, counter, _language_row)
    return PanelView(
        "decode",
        members.num_ready,
        members.num_wanted,
        "tokens/s",
        sum(r.rate for r in rows),
        "strms",
        (_kv_pages(members),),
        (
            ("streams", _requests(members)),
            ("steps", f"{_rate(window, members, lambda i: i.language.num_steps):.0f}/s"),
            ("preemptions", short(members.total(lambda i: i.language.num_preemptions))),
            *_lanes(window, members),
            _leases(members),
        ),
        rows,
    )


def _encoders(window: Window) -> _Members:
    """Encoder actors, and language actors that carry a tower."""
    members = _members(window, (common_pb2.STAGE_ENCODER,))
    known = {status.actor_id for status in members.statuses}
    towers = [
        info for actor_id, info in window.newest.infos.items() if actor_id not in known and info.HasField("encoder")
    ]
    statuses = [admin_pb2.ActorStatus(actor_id=info.actor_id, state=info.state) for info in towers]
    return _Members((*members.statuses, *statuses), (*members.infos, *towers), members.num_wanted + len(towers))


def _members(window: Window, stages: Sequence[common_pb2.Stage]) -> _Members:
    sample = window.newest
    chosen = [status for status in sample.topology.stages if status.stage in stages]
    statuses = [actor for status in chosen for actor in status.actors]
    infos = [sample.infos[actor.actor_id] for actor in statuses if actor.actor_id in sample.infos]
    return _Members(tuple(statuses), tuple(infos), sum(status.wanted_actors for status in chosen))


def _rows(window: Window, members: _Members, counter: Counter, make: MakeRow) -> tuple[ActorRow, ...]:
    infos = {info.actor_id: info for info in members.infos}
    return tuple(
        replace(make(infos[status.actor_id], window.rate(status.actor_id, counter)), state=status.state)
        if status.actor_id in infos
        else ActorRow(status.actor_id, status.state)
        for status in members.statuses
    )


def _language_row(info: admin_pb2.ActorInfo, rate: float) -> ActorRow:
    language = info.language
    load = language.running_requests + language.waiting_requests
    return ActorRow(info.actor_id, info.state, rate, load, language.held_pages / max(1, language.total_pages))


def _kv_pages(members: _Members) -> Bar:
    held = members.total(lambda i: i.language.held_pages)
    return Bar("KV pages", held, members.total(lambda i: i.language.total_pages))


def _requests(members: _Members) -> str:
    running = members.total(lambda i: i.language.running_requests)
    return f"{running:.0f} run, {members.total(lambda i: i.language.waiting_requests):.0f} wait"


def _leases(members: _Members) -> tuple[str, str]:
    held = members.total(lambda i: i.leases.held_leases)
    return "leases", f"{held:.0f}, {in_bytes(members.total(lambda i: i.leases.held_bytes))}"


def _lanes(window: Window, members: _Members) -> list[tuple[str, str]]:
    """Bytes a second and the time of one transfer, over each lane that was used lately."""
    names = dict.fromkeys(lane.lane for info in members.infos for lane in info.lane_counters)
    facts = []
    for name in names:
        transfers = sum(window.growth(info.actor_id, _lane_counter(name, "num_transfers")) for info in members.infos)
        if not transfers:
            continue
        seconds = sum(window.growth(info.actor_id, _lane_counter(name, "seconds")) for info in members.infos)
        speed = _rate(window, members, _lane_counter(name, "num_bytes"))
        facts.append((f"lane {name}", f"{in_bytes(speed)}/s, {1_000 * seconds / transfers:.2g} ms"))
    return facts


def _lane_counter(name: str, field: str) -> Counter:
    return lambda info: sum(getattr(lane, field) for lane in info.lane_counters if lane.lane == name)


def _rate(window: Window, members: _Members, counter: Counter) -> float:
    return sum(window.rate(info.actor_id, counter) for info in members.infos)


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def in_bytes(value: float) -> str:
    """12 B, 1.5 kB."""
    number, _, unit = short(value).partition(" ")
    return f"{number} {unit}B"


def short(value: float) -> str:
    """12, 1.5 k, 262 k, 3.1 M."""
    for unit in ("", " k", " M", " G"):
        if value < 999.5:
            return f"{value:.0f}{unit}" if value >= 99.5 or not unit else f"{value:.2g}{unit}"
        value /= 1_000
    return f"{value:.0f} T"
