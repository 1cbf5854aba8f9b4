"""On a GPU pages that leave by groups of layers, while the step is still computed, are those that leave as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")

from gpu_helpers import SteppedEngine, make_setup, new_sequence

from llm_service.kv_cache import PagedKvCache
from llm_service.kv_export import ExportedPart, KvExport
from llm_service.sequence import Sequence
from triptych.transport.parts import parts_of
from triptych.transport.ticket import Ticket

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

NUM_TOKENS = 3_000


def prefilled(engine: SteppedEngine, rows_per_part: int, layers_per_part: int) -> list[ExportedPart]:
    """All parts of the pages of one prompt, which is always the same."""
    cache = engine.engine.scheduler.cache
    assert isinstance(cache, PagedKvCache)
    shape = (-(-NUM_TOKENS // cache.page_size), *cache.shape.dims)
    ticket = Ticket(
        "t", "p", "127.0.0.1:1", "h", "f", cache.shape.dtype, shape, ("grpc",),
        rows_per_part=rows_per_part, layers_per_part=layers_per_part,
    )  # fmt: skip
    sequence: Sequence = new_sequence(NUM_TOKENS, prompt_seed=7)
    sequence.is_prefill_only, sequence.kv_export = True, KvExport(parts_of(ticket))
    engine.run([sequence])
    own = [output for output in engine.outputs if output.sequence is sequence]
    assert own[-1].kv_pages is not None
    return [
        *(part for output in own for part in output.kv_parts),
        ExportedPart(sequence.kv_export.last, own[-1].kv_pages),
    ]


def test_groups_are_the_whole(tmp_path: Path) -> None:
    engine = make_setup("3b", tmp_path).engine
    rows = -(-NUM_TOKENS // 16)
    in_blocks = prefilled(engine, rows - 1, 2)
    expected = torch.cat([item.pages for item in in_blocks])
    in_groups = prefilled(engine, rows, 1)
    assert [item.part.layers for item in in_groups] == [slice(0, 1), slice(1, 2)]
    assert all(item.pages.is_cuda for item in in_groups)
    assert torch.equal(torch.cat([item.pages for item in in_groups], dim=1), expected)
