"""DecodeGraphs: steps of one token a sequence, captured once for each batch bucket and replayed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from llm_service.attention.triton import StepShape, TritonStep, fill_block_table
from llm_service.fused_sampler import FusedSampler
from llm_service.graph_capture import GraphCapture
from llm_service.kv_cache import PagedKvCache
from llm_service.runner import Progress
from llm_service.scheduler import Chunk
from llm_service.sequence import Sequence
from llm_service.step_choice import Move, StepChoice, nearest, quickest
from llm_service.step_inputs import fill_decodes, token_specs
from llm_service.upload import Array, Fields, FieldSpec, Upload, array_specs, bytes_of
from triptych.kernels.decode_attention import MAX_SPLITS
from triptych.models.qwen2_5_vl.fused import BatchPlan

logger = logging.getLogger(__name__)

# (largest bucket, distance to the next): small batches are common, and a padded row costs the more the fewer there are.
_BUCKET_STEPS = ((4, 0), (64, 8), (128, 16), (256, 32))
_LAST_BUCKET_STEP = 64


def batch_buckets(max_batch: int) -> list[int]:
    """1, 2, 4, 8, 16 .. 64, 80 .. 128, 160 .. 256, 320 ..: up to `max_batch`, which is one in any case."""
    buckets = [1, 2, 4]
    while buckets[-1] < max_batch:
        step = next((step for end, step in _BUCKET_STEPS if buckets[-1] < end), _LAST_BUCKET_STEP)
        buckets.append(8 if buckets[-1] == 4 else buckets[-1] + step)
    return sorted({min(bucket, max_batch) for bucket in buckets})


# Computes a decode step of `batch` rows from the fields, as far as the sampled tokens.
ComputeDecodes = Callable[[int, Mapping[str, Tensor], TritonStep, StepChoice], None]

# Tuning: tokens that each sequence attends to, and replays of a captured step.
_TUNING_CONTEXT = 512
_NUM_WARM_REPLAYS, _NUM_TIMED_REPLAYS = 3, 10
# Room in the upload for rows with rules: the mask of a form has a bit for each token, so for some four hundred forms.
_MAX_SPECIAL_BYTES = 8 << 20


@dataclass(frozen=True)
class _Bucket:
    """fields: everything but the block table, at places that never change. replay: the captured step, which reads
    and writes what `attention` keeps alive."""

    fields: Fields
    attention: TritonStep
    replay: Callable[[], None]


class DecodeGraphs:
    """One bucket for each batch size up to `max_batch`; a smaller batch is filled up with rows of padding.

    Padding has context length 0 and slot -1: it attends to nothing, gives zeros, and stores nothing.
    On a CPU nothing is captured, and the step is computed each time.
    """

    def __init__(
        self,
        cache: PagedKvCache,
        max_batch: int,
        max_sequence_tokens: int,
        compute: ComputeDecodes,
        pdl: bool,
        batch_plan: Callable[[int], BatchPlan | None],
    ) -> None:
        """batch_plan: how the linears of a batch of that size are computed, unless a measurement was against it."""
        self.cache = cache
        self.max_batch = max_batch
        self._compute = compute
        self._pdl = pdl
        self._batch_plan = batch_plan
        self._buckets: dict[int, _Bucket] = {}
        self._choices: dict[int, StepChoice] = {}
        # One for all captures: cuBLAS keeps work space for every stream that it was used on.
        is_cuda = cache.device.type == "cuda"
        self._stream: torch.cuda.Stream | None = torch.cuda.Stream() if is_cuda else None  # type: ignore[no-untyped-call]
        max_pages = -(-max_sequence_tokens // cache.page_size)
        self._tables = torch.zeros((max_batch, max_pages), dtype=torch.int32, device=cache.device)
        table_specs: dict[str, FieldSpec] = {"block_table": ((max_batch, max_pages), torch.int32)}
        self._upload = Upload(
            bytes_of(_specs(max_batch)) + bytes_of(table_specs) + 2 * _MAX_SPECIAL_BYTES, cache.device
        )

    def capture(self, progress: Progress) -> None:
        """Largest first: the memory of one graph then holds that of all smaller ones."""
        started_s = time.monotonic()
        buckets = sorted(batch_buckets(self.max_batch), reverse=True)
        capture = None if self._stream is None else GraphCapture(self._stream)
        for index, batch in enumerate(buckets):
            self._buckets[batch] = self._new_bucket(batch, capture, self._choice(batch))
            progress(index + 1, len(buckets))
        logger.info("captured %d decode graphs in %.1f s", len(buckets), time.monotonic() - started_s)

    def tune(self, moves: Mapping[int, Seq[Move]], bases: Mapping[int, StepChoice], limit_s: float) -> None:
        """Finds how to compute steps of some batch sizes, by measurement; the buckets nearby follow. GPU only."""
        started_s = time.monotonic()
        batches = [batch for batch in moves if batch <= self.max_batch]
        for index, batch in enumerate(batches):
            left_s = (limit_s - (time.monotonic() - started_s)) / (len(batches) - index)
            self._choices[batch] = quickest(bases[batch], moves[batch], partial(self._time_ms, batch), left_s)
        self._tables.zero_()
        torch.cuda.empty_cache()
        logger.info("tuned decode steps in %.1f s: %s", time.monotonic() - started_s, self._choices)

    def _choice(self, batch: int) -> StepChoice:
        """What was measured, or what was for the next larger batch, with as many programs in all; else by shape.
        Linears go by shape, unless cuBLAS was quicker for that larger batch."""
        base = StepChoice(None, None, self._pdl)
        size = nearest(batch, self._choices)
        if size is None or size == batch:
            return self._choices.get(batch, base)
        plan = self._choices[size].attention
        if size == 1 or plan is None:
            return base
        num_splits = min(max(1, plan.num_splits * size // batch), MAX_SPLITS)
        batch_plan = None if self._choices[size].batch is None else self._batch_plan(batch)
        return replace(base, attention=replace(plan, num_splits=num_splits), batch=batch_plan)

    def _time_ms(self, batch: int, choice: StepChoice) -> float:
        """Milliseconds of a captured step at a usual context, every sequence with pages of its own."""
        assert self._stream is not None
        bucket = self._new_bucket(batch, GraphCapture(self._stream), choice)
        num_tokens = min(_TUNING_CONTEXT, self._tables.shape[1] * self.cache.page_size)
        pages = torch.arange(self._tables.numel(), device=self.cache.device).view_as(self._tables)
        self._tables.copy_(pages % self.cache.num_pages)
        bucket.fields.device["context_lengths"].fill_(num_tokens)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        for replay in range(_NUM_WARM_REPLAYS + _NUM_TIMED_REPLAYS):
            if replay == _NUM_WARM_REPLAYS:
                begin.record()
            bucket.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / _NUM_TIMED_REPLAYS

    def can_launch(self, chunks: Seq[Chunk], special: Mapping[str, Array]) -> bool:
        """All chunks have one token and are sampled, and there is room for them."""
        is_small = sum(array.nbytes for array in special.values()) <= _MAX_SPECIAL_BYTES
        are_decodes = all(chunk.num_new_tokens == 1 and chunk.is_sampled for chunk in chunks)
        return is_small and are_decodes and len(chunks) <= self.max_batch

    def launch(
        self,
        chunks: Seq[Chunk],
        rows: Mapping[Sequence, int],
        special: Mapping[str, Array],
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Replays the step of the chunks, one token each. Returns the fields and the special ones, on the device."""
        bucket = self._buckets[min(batch for batch in self._buckets if batch >= len(chunks))]
        num = len(chunks)
        self._upload.begin()
        host = bucket.fields.host[self._upload.turn]
        fill_decodes(chunks, self.cache.page_size, rows, host)
        FusedSampler.fill([chunk.sequence for chunk in chunks], host)
        host["context_lengths"][:num] = [chunk.end for chunk in chunks]
        host["context_lengths"][num:] = 0
        host["slots"][num:] = -1
        for name in ("token_ids", "sources"):
            host[name][num:] = 0
        host["positions"][:, num:] = 0
        tail = self._fill_tail(chunks, special, bucket.fields.num_bytes)
        self._upload.send(tail.num_bytes)
        table = tail.device["block_table"]
        self._tables[: len(table), : table.shape[1]].copy_(table)
        bucket.replay()
        return bucket.fields.device, {name: tail.device[name] for name in special}

    def _fill_tail(self, chunks: Seq[Chunk], special: Mapping[str, Array], first_byte: int) -> Fields:
        """What has another size in every step: the block table, and what few rows need."""
        width = max(len(chunk.block_table) for chunk in chunks)
        specs: dict[str, FieldSpec] = {"block_table": ((len(chunks), width), torch.int32)}
        specs |= array_specs(special)
        tail = self._upload.fields(specs, first_byte)
        host = tail.host[self._upload.turn]
        fill_block_table([chunk.block_table for chunk in chunks], host["block_table"])
        for name, array in special.items():
            host[name][...] = array
        return tail

    def _new_bucket(self, batch: int, capture: GraphCapture | None, choice: StepChoice) -> _Bucket:
        fields = self._upload.fields(_specs(batch))
        device = fields.device
        # Padding alone, so nothing is stored while the graph is made.
        for field in device.values():
            field.zero_()
        device["slots"].fill_(-1)
        shape = StepShape.of_decodes(batch, self._tables.shape[1])
        names = ("slots", "context_lengths")
        step_fields = {**{name: device[name] for name in names}, "block_table": self._tables[:batch]}
        attention = TritonStep(self.cache, shape, step_fields, choice.pdl, choice.attention)

        def compute() -> None:
            self._compute(batch, device, attention, choice)

        return _Bucket(fields, attention, compute if capture is None else capture.of(compute))


def _specs(batch: int) -> dict[str, FieldSpec]:
    return {**token_specs(batch), **FusedSampler.specs(batch), "context_lengths": ((batch,), torch.int32)}
