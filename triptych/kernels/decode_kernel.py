# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""The kernels behind `decode_attention`."""

import triton
import triton.language as tl

from triptych.kernels.launch import wait_for_previous
from triptych.kernels.paged import attend_tile, page_rows
from triptych.kernels.prefetch import fetch_upcoming
from triptych.kernels.rotary import load_cos_sin, load_rotated


# One compiled kernel serves every number of splits and every batch size.
@triton.jit(do_not_specialize=["positions_stride", "block_table_stride", "num_splits"])
def decode_kernel(
    query,
    positions,
    table,
    slot_mapping,
    key_cache,
    value_cache,
    block_table,
    context_lengths,
    partial_weighted,
    partial_logsumexp,
    arrivals,
    upcoming,
    out,
    log2_scale,
    query_stride,
    positions_stride,
    block_table_stride,
    num_splits,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    SECTION_TIME: tl.constexpr,
    SECTION_HEIGHT: tl.constexpr,
    HAS_ROTARY: tl.constexpr,
    HAS_MERGE_KERNEL: tl.constexpr,
    PRECISION: tl.constexpr,
    LANES: tl.constexpr,
    UPCOMING_BYTES: tl.constexpr,
    PDL: tl.constexpr,
):
    program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    fetch_upcoming(upcoming, program, LANES, UPCOMING_BYTES)
    wait_for_previous(PDL)
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    split = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    lanes = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, HEAD_DIM)
    head = kv_head * GROUP + lanes
    is_head = lanes < GROUP
    out_rows = out + (sequence * NUM_HEADS + head) * HEAD_DIM

    context = tl.load(context_lengths + sequence)
    # Tokens to read from pages. With rotation the new token is at hand, and counted as a part of the first split.
    num_cached = context - 1 if HAS_ROTARY else context
    tiles_per_split = tl.maximum(tl.cdiv(tl.cdiv(num_cached, BLOCK_TOKENS), num_splits), 1)
    split_tokens = tiles_per_split * BLOCK_TOKENS
    num_active = tl.maximum(tl.cdiv(num_cached, split_tokens), 1)
    if context == 0:
        num_active = 0
    if split >= num_active:
        if HAS_MERGE_KERNEL:
            empty = tl.full((BLOCK_GROUP,), float("-inf"), tl.float32)
            tl.store(partial_logsumexp + (sequence * num_splits + split) * NUM_HEADS + head, empty, mask=is_head)
        elif (context == 0) & (split == 0):
            zeros = tl.zeros((BLOCK_GROUP, HEAD_DIM), out.dtype.element_ty)
            tl.store(out_rows[:, None] + dims[None, :], zeros, mask=is_head[:, None])
        return

    maximum = tl.full((BLOCK_GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_GROUP,), tl.float32)
    weighted = tl.zeros((BLOCK_GROUP, HEAD_DIM), tl.float32)
    row = query + sequence * query_stride
    if HAS_ROTARY:
        cos, signed_sin = load_cos_sin(
            positions, table, sequence, positions_stride, HEAD_DIM, SECTION_TIME, SECTION_HEIGHT
        )
        queries = load_rotated(row, head, is_head, cos, signed_sin, HEAD_DIM).to(query.dtype.element_ty)
        if split == 0:
            partner = (dims + HEAD_DIM // 2) % HEAD_DIM
            key_row = row + (NUM_HEADS + kv_head) * HEAD_DIM
            key = tl.load(key_row + dims).to(tl.float32) * cos
            key += tl.load(key_row + partner).to(tl.float32) * signed_sin
            rounded_key = key.to(key_cache.dtype.element_ty)
            value = tl.load(row + (NUM_HEADS + NUM_KV_HEADS + kv_head) * HEAD_DIM + dims)
            slot = tl.load(slot_mapping + sequence)
            cache_row = (slot * NUM_KV_HEADS + kv_head) * HEAD_DIM + dims
            tl.store(key_cache + cache_row, rounded_key, mask=slot >= 0)
            tl.store(value_cache + cache_row, value, mask=slot >= 0)
            # The softmax begins with the new token: its weight is 1 as long as it is the maximum.
            products = queries.to(tl.float32) * rounded_key.to(tl.float32)[None, :]
            maximum = tl.sum(products, axis=1) * log2_scale
            total += 1.0
            weighted += value.to(tl.float32)[None, :]
    else:
        queries = tl.load(row + head[:, None] * HEAD_DIM + dims[None, :], mask=is_head[:, None], other=0.0)

    first = split * split_tokens
    end = tl.minimum(first + split_tokens, num_cached)
    pages = block_table + sequence * block_table_stride
    for start in range(first, end, BLOCK_TOKENS):
        tokens = start + tl.arange(0, BLOCK_TOKENS)
        is_token = tokens < end
        rows = page_rows(pages, tokens, is_token, kv_head, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE)
        maximum, total, weighted = attend_tile(
            queries, key_cache, value_cache, rows, is_token, is_token[None, :], log2_scale, maximum, total, weighted,
            HEAD_DIM, True, PRECISION,
        )  # fmt: skip

    attended = weighted / total[:, None]
    if not HAS_MERGE_KERNEL:  # noqa: SIM102 - one `if` is of compile time, the other of run time
        if num_active == 1:
            tl.store(out_rows[:, None] + dims[None, :], attended.to(out.dtype.element_ty), mask=is_head[:, None])
            return

    partial_row = (sequence * num_splits + split) * NUM_HEADS + head
    tl.store(partial_weighted + partial_row[:, None] * HEAD_DIM + dims[None, :], attended, mask=is_head[:, None])
    tl.store(partial_logsumexp + partial_row, maximum + tl.log2(total), mask=is_head)
    if not HAS_MERGE_KERNEL:
        # The barrier puts the stores of all threads before the one atomic that announces them.
        tl.debug_barrier()
        arrival = arrivals + sequence * NUM_KV_HEADS + kv_head
        if tl.atomic_add(arrival, 1, sem="acq_rel", scope="gpu") == num_active - 1:
            tl.store(arrival, 0)
            merged = _merge(
                partial_weighted, partial_logsumexp, sequence * num_splits, head, is_head, num_active,
                NUM_HEADS, HEAD_DIM, BLOCK_GROUP,
            )  # fmt: skip
            tl.store(out_rows[:, None] + dims[None, :], merged.to(out.dtype.element_ty), mask=is_head[:, None])


@triton.jit
def _merge(
    partial_weighted,
    partial_logsumexp,
    first_split,
    head,
    is_head,
    num_active,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
):
    """The attention of all active splits of a few heads, [BLOCK_GROUP, HEAD_DIM]."""
    dims = tl.arange(0, HEAD_DIM)
    maximum = tl.full((BLOCK_GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_GROUP,), tl.float32)
    weighted = tl.zeros((BLOCK_GROUP, HEAD_DIM), tl.float32)
    # No arithmetic waits for a load of another split: with several stages they are all on their way at once.
    for split in tl.range(0, num_active, num_stages=4):
        rows = (first_split + split) * NUM_HEADS + head
        logsumexp = tl.load(partial_logsumexp + rows, mask=is_head, other=0.0, cache_modifier=".cg")
        part = tl.load(
            partial_weighted + rows[:, None] * HEAD_DIM + dims[None, :],
            mask=is_head[:, None],
            other=0.0,
            cache_modifier=".cg",
        )
        new_maximum = tl.maximum(maximum, logsumexp)
        decay = tl.exp2(maximum - new_maximum)
        weight = tl.exp2(logsumexp - new_maximum)
        total = total * decay + weight
        weighted = weighted * decay[:, None] + part * weight[:, None]
        maximum = new_maximum
    return weighted / total[:, None]


@triton.jit(do_not_specialize=["num_splits"])
def merge_kernel(
    partial_weighted,
    partial_logsumexp,
    out,
    num_splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One query head of one sequence: all splits at once. Empty ones have a logsumexp of -inf and are not read."""
    wait_for_previous(PDL)
    head = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    splits = tl.arange(0, BLOCK_SPLITS)
    dims = tl.arange(0, HEAD_DIM)
    rows = (sequence * num_splits + splits) * NUM_HEADS + head
    logsumexp = tl.load(partial_logsumexp + rows, mask=splits < num_splits, other=float("-inf"))
    is_active = logsumexp > float("-inf")
    maximum = tl.max(logsumexp, axis=0)
    weights = tl.where(is_active, tl.exp2(logsumexp - maximum), 0.0)
    parts = tl.load(partial_weighted + rows[:, None] * HEAD_DIM + dims[None, :], mask=is_active[:, None], other=0.0)
    # A padding sequence has no active split: 0 / 1.
    total = tl.maximum(tl.sum(weights, axis=0), 1e-30)
    merged = tl.sum(parts * weights[:, None], axis=0) / total
    tl.store(out + (sequence * NUM_HEADS + head) * HEAD_DIM + dims, merged.to(out.dtype.element_ty))
