"""FusedModelRunner: steps that never wait for the host. Fused kernels, captured decode steps, tokens on the device."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from llm_service.attention.triton import (
    DENSE_MIN_TOKENS,
    PREFILL_TILING,
    TritonStep,
    kind_of_chunk,
    warm_dense_attention,
)
from llm_service.decode_graphs import DecodeGraphs
from llm_service.fused_sampler import FusedSampler
from llm_service.fused_step import FusedStep
from llm_service.kernel_warm_up import KernelUses, Task, compiling_side_by_side
from llm_service.kv_cache import PagedKvCache
from llm_service.layer_marks import LayerMarks
from llm_service.packed_fields import PackedFields
from llm_service.page_pool import PAGE_TYPECODE
from llm_service.prompt import Prompt
from llm_service.prompt_buckets import PromptBucket
from llm_service.prompt_graphs import PromptGraphs
from llm_service.runner import LayerWatch, Progress
from llm_service.scheduler import Chunk
from llm_service.sequence import Sequence
from llm_service.step_choice import StepChoice, moves_of_many, moves_of_one
from llm_service.step_inputs import lay_over_media
from llm_service.upload import Array
from triptych.errors import InvalidRequest
from triptych.kernels.decode_attention import DecodePlan, choose_plan
from triptych.models.qwen2_5_vl.fused import FusedLanguageModel, PackedAttention
from triptych.sampling import SamplingParameters

logger = logging.getLogger(__name__)

# Batch sizes whose steps are measured in several ways; those between follow the next of them.
_TUNED_BATCHES = (1, 32, 64, 128)
# Most seconds for that, kernels compiled for it included, and for the warm-up.
_MAX_TUNING_S = 2.5
_MAX_WARM_UP_S = 3.0
# cuBLAS chooses its kernel by the number of tokens; up to so many it is asked for each 128 of them.
_FINE_WARM_UP_TOKENS = 4_096


class FusedModelRunner:
    """Runs the fused model over the packed tokens of a step. A batch of decodes is the replay of a graph, and so is a
    step with prompts that one of `prompt_buckets` holds.

    `prepare` before the first step. Belongs to one thread and its current stream.
    """

    def __init__(
        self,
        model: FusedLanguageModel,
        cache: PagedKvCache,
        sampler: FusedSampler,
        *,
        max_batch: int,
        max_sequence_tokens: int,
        max_step_tokens: int,
        num_steps_ahead: int,
        progress: Progress,
        prompt_buckets: Seq[PromptBucket] = (),
    ) -> None:
        self.model = model
        self.cache = cache
        self.sampler = sampler
        self.num_steps_ahead = num_steps_ahead
        self._progress = progress
        self._max_sequence_tokens = max_sequence_tokens
        self._max_step_tokens = max_step_tokens
        device = cache.device
        self._packed_fields = PackedFields(cache)
        # Row i is what the newest step sampled for its i-th sampled chunk.
        self._sampled = torch.zeros(max_batch, dtype=torch.int64, device=device)
        self._row_of: dict[Sequence, int] = {}
        is_cuda = device.type == "cuda"
        self._results = [
            torch.zeros(max_batch, dtype=torch.int64, pin_memory=is_cuda) for _ in range(num_steps_ahead + 1)
        ]
        self._turn = 0
        self._logits = torch.zeros((max_batch, model.config.vocab_size), dtype=model.dtype, device=device)
        self._graphs = DecodeGraphs(
            cache, max_batch, max_sequence_tokens, self._compute_decodes, model.pdl, model.batch_plan
        )
        num_rows = max((bucket.num_tokens for bucket in prompt_buckets), default=0)
        media = torch.zeros((num_rows, model.config.hidden_size), dtype=model.dtype, device=device)
        self._prompt_graphs = PromptGraphs(
            cache, prompt_buckets, max_batch, max_sequence_tokens, media, self._compute_prompts
        )

    @torch.inference_mode()
    def prepare(self) -> None:
        """Compiles and loads kernels, measures which are quickest, and captures graphs; takes seconds."""
        is_cuda = self.cache.device.type == "cuda"
        if is_cuda:
            with compiling_side_by_side(self._kernel_uses()):
                # The libraries have their own to prepare, outside of Python as well.
                self._warm_up_sizes()
            torch.cuda.empty_cache()
            self._tune()
        self._graphs.capture(self._progress)
        if is_cuda:
            self._warm_up_kernels()
        self._prompt_graphs.capture(self._progress)
        if is_cuda:
            # What the capture's stream holds serves no other.
            torch.cuda.empty_cache()
            # The memory of the longest step serves all others.
            self.model.warm_up(self._max_step_tokens)
            torch.cuda.synchronize()

    def _kernel_uses(self) -> list[Task]:
        uses = KernelUses(
            self.model, self.cache, max_batch=self._sampled.numel(), max_sequence_tokens=self._max_sequence_tokens,
            prefill_tiling=PREFILL_TILING,
        )  # fmt: skip
        return uses.tasks()

    def _tune(self) -> None:
        bases = {
            batch: StepChoice(
                self._plan_decodes(batch),
                self.model.skinny_plan(batch) if batch <= self.model.max_skinny_tokens else None,
                self.model.pdl,
                self.model.batch_plan(batch) if batch > self.model.max_skinny_tokens else None,
            )
            for batch in _TUNED_BATCHES
        }
        moves = {
            batch: moves_of_one() if batch <= self.model.max_skinny_tokens else moves_of_many()
            for batch in _TUNED_BATCHES
        }
        self._graphs.tune(moves, bases, _MAX_TUNING_S)

    def _warm_up_kernels(self) -> None:
        """Whatever a first request would have to wait for, and the streams beside it: kernels of packed steps, for
        every number of splits."""
        batch = 1
        while batch < self._sampled.numel():
            self._launch_every_kind(batch)
            batch *= 2
        self._launch_every_kind(self._sampled.numel() - 1)

    def _warm_up_sizes(self) -> None:
        """Likewise the linears that cuBLAS chooses by the number of tokens, and cuDNN's plans of whole prompts. Belongs
        to the thread of the steps: cuDNN's plans are kept by thread."""
        started_s = time.monotonic()
        lengths = (*range(128, _FINE_WARM_UP_TOKENS, 128), *range(_FINE_WARM_UP_TOKENS, self._max_step_tokens + 1, 512))
        for num_tokens in reversed(lengths):
            self.model.warm_up(min(num_tokens, self._max_step_tokens))
        shape, length = self.cache.shape, DENSE_MIN_TOKENS
        while length <= min(self._max_step_tokens, self._max_sequence_tokens):
            if time.monotonic() - started_s > _MAX_WARM_UP_S:
                logger.info("cuDNN plans are ready for prompts of less than %d tokens, longer ones plan anew", length)
                break
            num_heads = self.model.config.num_attention_heads
            length = 1 + warm_dense_attention(
                length, num_heads, shape.num_kv_heads, shape.head_dim, shape.dtype, self.cache.device
            )
            torch.cuda.synchronize()
        logger.info("warmed up in %.1f s", time.monotonic() - started_s)

    def _launch_every_kind(self, num_decodes: int) -> None:
        chunks = _every_kind_of_chunk(self.cache.page_size, num_decodes)
        self._launch_packed(chunks, self.sampler.special([chunks[-1].sequence]))

    def _plan_decodes(self, num_decodes: int) -> DecodePlan:
        """The same for every context length, so that no step compiles or rounds anew."""
        return choose_plan(num_decodes, self.cache.shape.num_kv_heads, self._max_sequence_tokens)

    @torch.inference_mode()
    def launch(self, chunks: list[Chunk], watch: LayerWatch | None = None) -> FusedStep:
        """Begins a step; replays of graphs tell nothing of their layers. Raises InvalidRequest for a prompt whose
        positions are higher than the model's."""
        for chunk in chunks:
            self._check_positions(chunk)
        # Kinds in the order that attention asks for; each kind stays in the order of admission.
        chunks = sorted(chunks, key=lambda chunk: kind_of_chunk(chunk.num_new_tokens, chunk.end))
        special = self.sampler.special([chunk.sequence for chunk in chunks if chunk.is_sampled])
        marks = None
        if self._graphs.can_launch(chunks, special):
            rows = self._launch_decodes(chunks, special)
        elif bucket := self._prompt_graphs.bucket_of(chunks, special):
            rows = self._launch_prompts(bucket, chunks, special)
        else:
            marks = None if watch is None else LayerMarks(watch, self.cache.device)
            rows = self._launch_packed(chunks, special, marks)
        self._row_of = {chunk.sequence: row for chunk, row in zip(chunks, rows, strict=True) if row is not None}
        return self._returning(chunks, rows, marks)

    def _launch_decodes(self, chunks: list[Chunk], special: Mapping[str, Array]) -> list[int | None]:
        """The row of each chunk among the sampled tokens."""
        fields, special_fields = self._graphs.launch(chunks, self._row_of, special)
        if special:
            self.sampler.resample(self._logits, fields, special_fields, self._sampled)
        return _rows_of_sampled(chunks)

    def _compute_decodes(
        self, batch: int, fields: Mapping[str, Tensor], attention: TritonStep, choice: StepChoice
    ) -> None:
        hidden = self.model.forward(self._embed(fields), fields["positions"], attention, choice.skinny, choice.batch)
        logits = self.model.logits(hidden, out=self._logits[:batch])
        self.sampler.sample(logits, fields, self._sampled[:batch], pdl=self.model.pdl)

    def _launch_prompts(
        self, bucket: PromptBucket, chunks: list[Chunk], special: Mapping[str, Array]
    ) -> list[int | None]:
        fields, special_fields = self._prompt_graphs.launch(bucket, chunks, self._row_of, special)
        if special:
            self.sampler.resample(self._logits, fields, special_fields, self._sampled)
        return _rows_of_sampled(chunks)

    def _compute_prompts(
        self, num_sampled: int, fields: Mapping[str, Tensor], media: Tensor, attention: TritonStep
    ) -> None:
        embeddings = torch.where(fields["is_media"][:, None], media, self._embed(fields))
        hidden = self.model.forward(embeddings, fields["positions"], attention)
        logits = self.model.logits(hidden.index_select(0, fields["sampled_rows"]), out=self._logits[:num_sampled])
        self.sampler.sample(logits, fields, self._sampled[:num_sampled])

    def _launch_packed(
        self, chunks: list[Chunk], special: Mapping[str, Array], marks: LayerMarks | None = None
    ) -> list[int | None]:
        """Prompts, with whatever decodes beside them, kernel by kernel: the host is done before the device is."""
        last_rows = [end - 1 for end in accumulate(chunk.num_new_tokens for chunk in chunks)]
        sampled = [(row, chunk.sequence) for row, chunk in zip(last_rows, chunks, strict=True) if chunk.is_sampled]
        fields, special_fields, shape = self._packed_fields.send(chunks, sampled, self._row_of, special)
        embeddings = self._embed(fields)
        first_row = 0
        for chunk in chunks:
            lay_over_media(embeddings, chunk, first_row)
            first_row += chunk.num_new_tokens
        plan = self._plan_decodes(shape.num_decodes) if shape.num_decodes else None
        attention: PackedAttention = TritonStep(self.cache, shape, fields, plan=plan)
        if marks is not None:
            attention = marks.beside(attention)
        hidden = self.model.forward(embeddings, fields["positions"], attention)
        if sampled:
            logits = self._logits[: len(sampled)]
            self.model.logits(hidden.index_select(0, fields["sampled_rows"]), out=logits)
            self.sampler.sample(logits, fields, self._sampled[: len(sampled)])
            if special:
                self.sampler.resample(logits, fields, special_fields, self._sampled)
        return _rows_of_sampled(chunks)

    def _embed(self, fields: Mapping[str, Tensor]) -> Tensor:
        token_ids = fields["token_ids"]
        pending = self._sampled.index_select(0, fields["sources"])
        return self.model.embed(torch.where(token_ids < 0, pending, token_ids))

    def _returning(self, chunks: list[Chunk], rows: list[int | None], marks: LayerMarks | None) -> FusedStep:
        """Starts the copy of the sampled tokens to the host."""
        num_rows = max((row + 1 for row in rows if row is not None), default=0)
        self._turn = (self._turn + 1) % len(self._results)
        result = self._results[self._turn][:num_rows]
        result.copy_(self._sampled[:num_rows], non_blocking=True)
        logprobs = self.sampler.take_logprobs()
        if logprobs is not None:
            logprobs = logprobs.to_host()
        done = None
        if self.cache.device.type == "cuda":
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return FusedStep(chunks, rows, result.numpy(), logprobs, done, marks)

    def _check_positions(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        if chunk.num_new_tokens == 1 and chunk.start >= sequence.prompt.num_tokens + 1:
            return
        num_answer_tokens = sequence.token_limit - sequence.prompt.num_tokens
        highest = int(sequence.prompt.positions.max()) + num_answer_tokens
        if highest >= self.model.max_position:
            raise InvalidRequest(
                f"the prompt and {num_answer_tokens} answer tokens reach position {highest}, the highest here is "
                f"{self.model.max_position - 1}: the time between the frames of a video counts as well",
                field="prompt.media",
            )


def _rows_of_sampled(chunks: Seq[Chunk]) -> list[int | None]:
    """Sampled tokens are in the order of the chunks."""
    rows = iter(range(len(chunks)))
    return [next(rows) if chunk.is_sampled else None for chunk in chunks]


def _every_kind_of_chunk(page_size: int, num_decodes: int) -> list[Chunk]:
    """Decodes, a chunk behind others and a whole prompt, the last sampled in every way: all kernels get compiled.

    They write to page 0, which belongs to nobody yet.
    """
    num_tokens = 2 * page_size
    prompt = Prompt((0,) * num_tokens, (), np.zeros((3, num_tokens), dtype=np.int64))
    sampling = SamplingParameters(max_tokens=1, temperature=1.0, top_k=2, min_tokens=1, stop_token_ids=(0,))
    sequence, table = Sequence("warm-up", prompt, sampling), array(PAGE_TYPECODE, (0, 0))
    spans = (*[(0, 1)] * num_decodes, (page_size, num_tokens), (0, num_tokens))
    return [Chunk(sequence, start, end, table, is_sampled=False) for start, end in spans[:-1]] + [
        Chunk(sequence, *spans[-1], table, is_sampled=True)
    ]
