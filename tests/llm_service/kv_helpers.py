"""KV pages in parts: what leaves an engine, and requests whose ticket is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import torch
from engine_helpers import Case, SteppedEngine, new_sequence
from parallel_helpers import ParallelEngine
from service_helpers import TIMEOUT_S, Cluster, RunningActor

from llm_service.kv_cache import PagedKvCache, PageShape
from llm_service.kv_export import ExportedPart, KvExport
from llm_service.parallel.pages import GatheredPages
from llm_service.scheduler import Scheduler
from llm_service.sequence import Sequence
from triptych.transport.parts import parts_of
from triptych.transport.ticket import Ticket
from triptych.v1 import common_pb2, language_pb2

AnyEngine = SteppedEngine | ParallelEngine


def scheduler_of(engine: AnyEngine) -> Scheduler:
    return engine.engine.scheduler if isinstance(engine, ParallelEngine) else engine.scheduler


def page_shape(engine: AnyEngine) -> PageShape:
    cache = scheduler_of(engine).cache
    assert isinstance(cache, PagedKvCache | GatheredPages)
    return cache.shape


def engine_ticket(engine: AnyEngine, case: Case, rows: int, layers: int) -> Ticket:
    shape = page_shape(engine)
    return Ticket(
        ticket_id="t",
        producer_id="p",
        producer_endpoint="127.0.0.1:1",
        producer_host_id="h",
        model_fingerprint="f",
        dtype=shape.dtype,
        shape=(scheduler_of(engine).pool.num_pages_for(case.prompt.num_tokens), *shape.dims),
        lanes=("grpc",),
        rows_per_part=rows,
        layers_per_part=layers,
    )


def prefill_sequence(engine: AnyEngine, case: Case, rows: int = 0, layers: int = 0) -> Sequence:
    """Its pages leave in parts of so many pages and layers; 0: of all."""
    parts = parts_of(engine_ticket(engine, case, rows, layers))
    return new_sequence(case, is_prefill_only=True, kv_export=KvExport(parts) if parts else None)


def exported_by(engine: AnyEngine, sequence: Sequence) -> list[ExportedPart]:
    """All parts of a prompt, in the order in which they left; the last of them came with the first token."""
    own = [output for output in engine.outputs if output.sequence is sequence]
    assert own[-1].kv_pages is not None and own[-1].token_ids
    assert sequence.kv_export is not None
    last = ExportedPart(sequence.kv_export.last, own[-1].kv_pages)
    return [*(part for output in own for part in output.kv_parts), last]


def whole_pages(engine: AnyEngine, sequence: Sequence) -> torch.Tensor:
    """The pages of a prompt, put together of parts; each layer of each page has to have left once."""
    if sequence.kv_export is None:
        (pages,) = [output.kv_pages for output in engine.outputs if output.sequence is sequence and output.is_last]
        assert pages is not None
        return pages
    exported = exported_by(engine, sequence)
    num_pages = max(item.part.end_row for item in exported)
    pages = torch.full((num_pages, *page_shape(engine).dims), torch.nan)
    for item in exported:
        target = pages[item.part.first_row : item.part.end_row, item.part.layers]
        assert target.isnan().all() and target.shape == item.pages.shape
        target.copy_(item.pages)
    assert not pages.isnan().any()
    return pages


def in_parts(
    cluster: Cluster, running: RunningActor, num_tokens: int, rows: int = 1, layers: int = 0
) -> common_pb2.Ticket:
    ticket = cluster.kv_ticket(running, num_tokens)
    ticket.rows_per_part, ticket.layers_per_part = rows, layers
    return ticket


def prefill_of(decode: language_pb2.DecodeRequest) -> language_pb2.PrefillRequest:
    return language_pb2.PrefillRequest(
        request_id=decode.request_id, prompt=decode.prompt, sampling=decode.sampling, kv_ticket=decode.kv_ticket
    )


async def num_transfers(running: RunningActor) -> int:
    return sum(counters.num_transfers for counters in (await running.ask()).lane_counters)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(int(TIMEOUT_S / 0.005)):
        if await condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come true")
