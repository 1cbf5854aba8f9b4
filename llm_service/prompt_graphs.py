"""PromptGraphs: steps with chunks of prompts, alone or beside decodes, captured for buckets of sizes and replayed.

A step has about ten kernels a layer. Launched one by one they keep the host busy for longer than the device, unless
the prompts are long: 15 to 28 ms for the 36 layers of 3B, where the device needs 13 for 1,024 tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from llm_service.attention.triton import StepShape, TritonStep, fill_block_table, kind_of_chunk
from llm_service.fused_sampler import FusedSampler
from llm_service.graph_capture import GraphCapture
from llm_service.kv_cache import PagedKvCache
from llm_service.prompt_buckets import MAX_CHUNKS, PromptBucket, smallest
from llm_service.runner import Progress
from llm_service.scheduler import Chunk
from llm_service.sequence import Sequence
from llm_service.step_inputs import fill_decodes, fill_prefills, token_specs
from llm_service.upload import Array, Fields, FieldSpec, Upload, array_specs, bytes_of
from triptych.kernels.decode_attention import choose_plan

logger = logging.getLogger(__name__)

# Computes a step with so many sampled rows from the fields and from rows [T, hidden] of media, as far as the tokens.
ComputePrompts = Callable[[int, Mapping[str, Tensor], Tensor, TritonStep], None]

# Room in the upload for rows with top-k, top-p or banned tokens.
_MAX_SPECIAL_BYTES = 1 << 20
_MAX_CAPTURE_S = 4.0


@dataclass(frozen=True)
class _Graph:
    """fields: everything but the block tables, at places that never change. replay: the captured step, which reads
    and writes what `attention` keeps alive."""

    fields: Fields
    attention: TritonStep
    replay: Callable[[], None]


class PromptGraphs:
    """One graph a bucket; a step takes the smallest that holds it, and fills it up with padding.

    A padded decode has context length 0. Padded prompt tokens belong to no sequence: nothing is stored for them, and
    whatever their rows hold stays in their rows. On a CPU nothing is captured, and the step is computed each time.
    """

    def __init__(
        self,
        cache: PagedKvCache,
        buckets: Seq[PromptBucket],
        max_batch: int,
        max_sequence_tokens: int,
        media: Tensor,
        compute: ComputePrompts,
    ) -> None:
        """media: [largest bucket, hidden], where embeddings of media wait for the step that takes them."""
        self.cache = cache
        self._max_batch = max_batch
        self._max_sequence_tokens = max_sequence_tokens
        self._media = media
        self._compute = compute
        # Largest first: its memory then holds that of all others.
        self._buckets = sorted(buckets, key=lambda bucket: bucket.num_tokens, reverse=True)
        self._graphs: dict[PromptBucket, _Graph] = {}
        max_pages = -(-max_sequence_tokens // cache.page_size)
        max_decodes = max((bucket.num_decodes for bucket in buckets), default=0)
        device = cache.device
        self._tables = torch.zeros((max_decodes, max_pages), dtype=torch.int32, device=device)
        self._chunk_tables = torch.zeros((MAX_CHUNKS, max_pages), dtype=torch.int32, device=device)
        specs = {} if not buckets else self._specs(PromptBucket(max_decodes, len(media)))
        table_specs: dict[str, FieldSpec] = {"tables": ((max_decodes + MAX_CHUNKS, max_pages), torch.int32)}
        self._upload = Upload(bytes_of(specs) + bytes_of(table_specs) + 2 * _MAX_SPECIAL_BYTES, device)

    def capture(self, progress: Progress) -> None:
        """Those that take too long are left out; larger buckets, or no graph, serve their steps."""
        started_s = time.monotonic()
        is_cuda = self.cache.device.type == "cuda"
        capture = GraphCapture(torch.cuda.Stream()) if is_cuda else None  # type: ignore[no-untyped-call]
        for index, bucket in enumerate(self._buckets):
            if time.monotonic() - started_s > _MAX_CAPTURE_S:
                break
            self._graphs[bucket] = self._new_graph(bucket, capture)
            progress(index + 1, len(self._buckets))
        seconds = time.monotonic() - started_s
        logger.info("captured %d of %d prompt graphs in %.1f s", len(self._graphs), len(self._buckets), seconds)

    def bucket_of(self, chunks: Seq[Chunk], special: Mapping[str, Array]) -> PromptBucket | None:
        """The bucket that serves a step of these chunks, if any does."""
        is_small = sum(array.nbytes for array in special.values()) <= _MAX_SPECIAL_BYTES
        prompts = [chunk for chunk in chunks if chunk.num_new_tokens > 1]
        if not prompts or not is_small or len(prompts) > MAX_CHUNKS:
            return None
        if any(kind_of_chunk(chunk.num_new_tokens, chunk.end) == 2 for chunk in prompts):
            return None
        num_prompt_tokens = sum(chunk.num_new_tokens for chunk in prompts)
        return smallest(self._graphs, len(chunks) - len(prompts), num_prompt_tokens)

    def launch(
        self, bucket: PromptBucket, chunks: Seq[Chunk], rows: Mapping[Sequence, int], special: Mapping[str, Array]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Replays the step: decodes first, then prompts. The sampled tokens are in the order of the chunks. Returns the
        fields and the special ones, on the device."""
        graph = self._graphs[bucket]
        num_decodes = sum(chunk.num_new_tokens == 1 for chunk in chunks)
        decodes, prompts = chunks[:num_decodes], chunks[num_decodes:]
        self._upload.begin()
        host = graph.fields.host[self._upload.turn]
        fill_decodes(decodes, self.cache.page_size, rows, host)
        fill_prefills(prompts, self.cache.page_size, bucket.num_decodes, host)
        self._fill_lengths(bucket, decodes, prompts, host)
        sampled = [
            (row, chunk.sequence)
            for row, chunk in zip(_last_rows(bucket, decodes, prompts), chunks, strict=True)
            if chunk.is_sampled
        ]
        host["sampled_rows"][:] = 0
        host["sampled_rows"][: len(sampled)] = [row for row, _ in sampled]
        FusedSampler.fill([sequence for _, sequence in sampled], host)
        self._fill_media(bucket, prompts, host["is_media"])
        tail = self._fill_tail(decodes, prompts, special, graph.fields.num_bytes)
        self._upload.send(tail.num_bytes)
        for name, tables in (("block_table", self._tables), ("chunk_block_table", self._chunk_tables)):
            table = tail.device[name]
            if len(table):
                tables[: len(table), : table.shape[1]].copy_(table)
        graph.replay()
        return graph.fields.device, {name: tail.device[name] for name in special}

    def _fill_lengths(
        self, bucket: PromptBucket, decodes: Seq[Chunk], prompts: Seq[Chunk], host: Mapping[str, Array]
    ) -> None:
        """Where sequences begin and end, and padding behind the decodes and behind the prompts."""
        host["context_lengths"][: len(decodes)] = [chunk.end for chunk in decodes]
        host["context_lengths"][len(decodes) :] = 0
        host["chunk_context_lengths"][: len(prompts)] = [chunk.end for chunk in prompts]
        host["chunk_context_lengths"][len(prompts) :] = 0
        ends = [0, *accumulate(chunk.num_new_tokens for chunk in prompts)]
        host["chunk_ends"][: len(ends)] = ends
        host["chunk_ends"][len(ends) :] = ends[-1]
        for padding in (slice(len(decodes), bucket.num_decodes), slice(bucket.num_decodes + ends[-1], None)):
            host["slots"][padding] = -1
            host["positions"][:, padding] = 0
            for name in ("token_ids", "sources"):
                host[name][padding] = 0

    def _fill_media(self, bucket: PromptBucket, prompts: Seq[Chunk], is_media: Array) -> None:
        """Puts the embeddings of the chunks' media where the step takes them."""
        is_media[:] = False
        first_row = bucket.num_decodes
        for chunk in prompts:
            for part in chunk.sequence.embedding_slices(chunk.start, chunk.end):
                start = first_row + part.offset
                rows = part.embedding[part.first_row : part.last_row]
                self._media[start : start + len(rows)].copy_(rows, non_blocking=True)
                is_media[start : start + len(rows)] = True
            first_row += chunk.num_new_tokens

    def _fill_tail(
        self, decodes: Seq[Chunk], prompts: Seq[Chunk], special: Mapping[str, Array], first_byte: int
    ) -> Fields:
        """What has another size in every step: block tables, and what few rows need."""
        of_decodes, of_prompts = ([chunk.block_table for chunk in chunks] for chunks in (decodes, prompts))
        specs: dict[str, FieldSpec] = {
            "block_table": ((len(decodes), max(map(len, of_decodes), default=0)), torch.int32),
            "chunk_block_table": ((len(prompts), max(map(len, of_prompts), default=0)), torch.int32),
            **array_specs(special),
        }
        tail = self._upload.fields(specs, first_byte)
        host = tail.host[self._upload.turn]
        fill_block_table(of_decodes, host["block_table"])
        fill_block_table(of_prompts, host["chunk_block_table"])
        for name, array in special.items():
            host[name][...] = array
        return tail

    def _new_graph(self, bucket: PromptBucket, capture: GraphCapture | None) -> _Graph:
        fields = self._upload.fields(self._specs(bucket))
        device = fields.device
        # Padding alone, so nothing is stored while the graph is made.
        for field in device.values():
            field.zero_()
        device["slots"].fill_(-1)
        max_pages = self._chunk_tables.shape[1]
        shape = StepShape.of_chunks(bucket.num_decodes, MAX_CHUNKS, bucket.num_prompt_tokens, max_pages)
        tables = {"block_table": self._tables[: bucket.num_decodes], "chunk_block_table": self._chunk_tables}
        # The same cut of decodes as in a step without a graph.
        num_kv_heads = self.cache.shape.num_kv_heads
        plan = choose_plan(bucket.num_decodes, num_kv_heads, self._max_sequence_tokens) if bucket.num_decodes else None
        attention = TritonStep(self.cache, shape, {**device, **tables}, plan=plan)
        num_rows, media = self._num_sampled(bucket), self._media[: bucket.num_tokens]

        def compute() -> None:
            self._compute(num_rows, device, media, attention)

        return _Graph(fields, attention, compute if capture is None else capture.of(compute))

    def _specs(self, bucket: PromptBucket) -> dict[str, FieldSpec]:
        num_rows = self._num_sampled(bucket)
        return {
            **token_specs(bucket.num_tokens),
            **FusedSampler.specs(num_rows),
            "sampled_rows": ((num_rows,), torch.int64),
            "context_lengths": ((bucket.num_decodes,), torch.int32),
            "chunk_context_lengths": ((MAX_CHUNKS,), torch.int32),
            "chunk_ends": ((MAX_CHUNKS + 1,), torch.int32),
            "is_media": ((bucket.num_tokens,), torch.bool),
        }

    def _num_sampled(self, bucket: PromptBucket) -> int:
        return min(bucket.num_decodes + MAX_CHUNKS, self._max_batch)


def _last_rows(bucket: PromptBucket, decodes: Seq[Chunk], prompts: Seq[Chunk]) -> list[int]:
    """The row of each chunk's last token."""
    ends = accumulate((chunk.num_new_tokens for chunk in prompts), initial=bucket.num_decodes)
    return [*range(len(decodes)), *(end - 1 for end in list(ends)[1:])]
