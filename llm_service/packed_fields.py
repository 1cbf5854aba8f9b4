"""PackedFields: what a packed step needs on the device, sent in one copy."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from llm_service.attention.base import StepLayout
from llm_service.attention.triton import StepShape
from llm_service.fused_sampler import FusedSampler
from llm_service.kv_cache import PagedKvCache
from llm_service.scheduler import Chunk
from llm_service.sequence import Sequence
from llm_service.step_inputs import fill_decodes, fill_prefills, slots_of, token_specs
from llm_service.upload import Array, FieldSpec, Upload, array_specs, bytes_of

_FIRST_UPLOAD_BYTES = 1 << 20


class PackedFields:
    """Tokens, positions, slots, tables and sampling of the chunks of a step, decodes first. Its memory grows with the
    longest step."""

    def __init__(self, cache: PagedKvCache) -> None:
        self._cache = cache
        self._upload = Upload(_FIRST_UPLOAD_BYTES, cache.device)

    def send(
        self,
        chunks: list[Chunk],
        sampled: Seq[tuple[int, Sequence]],
        row_of: Mapping[Sequence, int],
        special: Mapping[str, Array],
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], StepShape]:
        """Fields of the step and of its special rows, on the device. sampled: the row of the last token of each
        sequence that is sampled; row_of: where the token is that the step before sampled."""
        page_size = self._cache.page_size
        num_decodes = sum(chunk.num_new_tokens == 1 for chunk in chunks)
        layout = StepLayout(
            slots=np.concatenate([slots_of(chunk, page_size) for chunk in chunks]),
            num_new_tokens=[chunk.num_new_tokens for chunk in chunks],
            num_tokens=[chunk.end for chunk in chunks],
            block_tables=[chunk.block_table for chunk in chunks],
        )
        shape = StepShape.of(layout, self._cache.device)
        specs: dict[str, FieldSpec] = {
            **token_specs(shape.num_tokens),
            **shape.specs(),
            **FusedSampler.specs(len(sampled)),
            "sampled_rows": ((len(sampled),), torch.int64),
            **array_specs(special),
        }
        if bytes_of(specs) > self._upload.num_bytes:
            self._upload = Upload(2 * bytes_of(specs), self._cache.device)
        fields = self._upload.fields(specs)
        self._upload.begin()
        host = fields.host[self._upload.turn]
        fill_decodes(chunks[:num_decodes], page_size, row_of, host)
        fill_prefills(chunks[num_decodes:], page_size, num_decodes, host)
        shape.fill(layout, host)
        FusedSampler.fill([sequence for _, sequence in sampled], host)
        host["sampled_rows"][:] = [row for row, _ in sampled]
        for name, values in special.items():
            host[name][...] = values
        self._upload.send(fields.num_bytes)
        return fields.device, {name: fields.device[name] for name in special}, shape
