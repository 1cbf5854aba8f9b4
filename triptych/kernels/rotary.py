# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""mRoPE on query and key, and the store of key and value into their pages, in one kernel.

Floor: bytes. The packed qkv is read once; query, key and value are written once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.kernels.launch import launch_options, wait_for_previous

_BLOCK_HEADS = 4


def rotary_table(max_position: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Float32 [max_position, head_dim]: per position head_dim / 2 cosines, then as many sines, of an unsectioned RoPE.

    With mRoPE each frequency takes the row of its own axis' position.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    positions = torch.arange(max_position, dtype=torch.float32, device=device)
    angles = positions[:, None] * (1.0 / theta**exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def rotary_and_store(
    qkv: Tensor,
    positions: Tensor,
    table: Tensor,
    sections: tuple[int, int, int],
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    out: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """Rotates query and key, stores key and value, returns the rotated query `out` [T, num_heads, head_dim].

    qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim], rows may be strided. positions: int64 [3, T] (time, height,
    width). table: see `rotary_table`. sections: how many of the head_dim / 2 frequencies turn with each axis.
    key_cache, value_cache: [num_pages, page_size, num_kv_heads, head_dim], contiguous. slot_mapping: int64 [T],
    page * page_size + offset; a negative slot is padding and stores nothing.
    """
    num_tokens, width = qkv.shape
    num_kv_heads, head_dim = key_cache.shape[-2:]
    num_heads = width // head_dim - 2 * num_kv_heads
    if out is None:
        out = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    assert key_cache.is_contiguous() and value_cache.is_contiguous() and out.is_contiguous()
    assert qkv.stride(1) == positions.stride(1) == 1 and table.is_contiguous() and sum(sections) * 2 == head_dim
    if num_tokens == 0:
        return out
    num_blocks = triton.cdiv(num_heads + 2 * num_kv_heads, _BLOCK_HEADS)
    _rotary_and_store_kernel[(num_tokens, num_blocks)](
        qkv,
        positions,
        table,
        key_cache,
        value_cache,
        slot_mapping,
        out,
        qkv.stride(0),
        positions.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        SECTION_TIME=sections[0],
        SECTION_HEIGHT=sections[1],
        BLOCK_HEADS=_BLOCK_HEADS,
        PDL=pdl,
        num_warps=1,
        **launch_options(pdl),
    )
    return out


def rotary_and_store_reference(
    qkv: Tensor,
    positions: Tensor,
    table: Tensor,
    sections: tuple[int, int, int],
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """The same in plain torch; fills the caches and returns the query."""
    num_kv_heads, head_dim = key_cache.shape[-2:]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    query, key, value = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    cos, sin = gather_cos_sin(positions, table, sections)
    is_kept = slot_mapping >= 0
    slots = slot_mapping[is_kept]
    key_cache.flatten(0, 1)[slots] = rotate_reference(key, cos, sin)[is_kept]
    value_cache.flatten(0, 1)[slots] = value[is_kept]
    return rotate_reference(query, cos, sin)


def gather_cos_sin(positions: Tensor, table: Tensor, sections: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, head_dim / 2] of positions [3, T], each frequency from the row of its axis."""
    cos, sin = table[positions].chunk(2, dim=-1)
    per_axis = [torch.split(values, list(sections), dim=-1) for values in (cos, sin)]
    gathered = [torch.cat([values[axis][axis] for axis in range(3)], dim=-1) for values in per_axis]
    return gathered[0], gathered[1]


def rotate_reference(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates [T, heads, head_dim] in float32, pairing value i with i + head_dim / 2."""
    first, second = states.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(states.dtype)


@triton.jit
def load_cos_sin(
    positions,
    table,
    token,
    positions_stride,
    HEAD_DIM: tl.constexpr,
    SECTION_TIME: tl.constexpr,
    SECTION_HEIGHT: tl.constexpr,
):
    """Cosines and signed sines [HEAD_DIM] of one token: rotated[d] = x[d] * cos[d] + x[partner(d)] * signed_sin[d]."""
    HALF: tl.constexpr = HEAD_DIM // 2
    dims = tl.arange(0, HEAD_DIM)
    frequency = dims % HALF
    axis = tl.where(frequency < SECTION_TIME, 0, tl.where(frequency < SECTION_TIME + SECTION_HEIGHT, 1, 2))
    position = tl.load(positions + axis * positions_stride + token)
    cos = tl.load(table + position * HEAD_DIM + frequency)
    sin = tl.load(table + position * HEAD_DIM + HALF + frequency)
    return cos, tl.where(dims < HALF, -sin, sin)


@triton.jit
def load_rotated(heads, head_index, is_head, cos, signed_sin, HEAD_DIM: tl.constexpr):
    """Rotated float32 [H, HEAD_DIM] of the heads at `heads + head_index * HEAD_DIM`; rows outside are zero."""
    dims = tl.arange(0, HEAD_DIM)
    partner = (dims + HEAD_DIM // 2) % HEAD_DIM
    rows = heads + head_index[:, None] * HEAD_DIM
    values = tl.load(rows + dims[None, :], mask=is_head[:, None], other=0.0).to(tl.float32)
    partners = tl.load(rows + partner[None, :], mask=is_head[:, None], other=0.0).to(tl.float32)
    return values * cos[None, :] + partners * signed_sin[None, :]


@triton.jit(do_not_specialize=["positions_stride"])
def _rotary_and_store_kernel(
    qkv,
    positions,
    table,
    key_cache,
    value_cache,
    slot_mapping,
    out,
    qkv_stride,
    positions_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SECTION_TIME: tl.constexpr,
    SECTION_HEIGHT: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_previous(PDL)
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    is_head = heads < NUM_HEADS + 2 * NUM_KV_HEADS
    is_value = heads >= NUM_HEADS + NUM_KV_HEADS
    dims = tl.arange(0, HEAD_DIM)[None, :]
    slot = tl.load(slot_mapping + token)

    cos, signed_sin = load_cos_sin(positions, table, token, positions_stride, HEAD_DIM, SECTION_TIME, SECTION_HEIGHT)
    cos_of_head = tl.where(is_value[:, None], 1.0, cos[None, :])
    sin_of_head = tl.where(is_value[:, None], 0.0, signed_sin[None, :])
    row = qkv + token * qkv_stride + heads[:, None] * HEAD_DIM
    partner = (dims + HEAD_DIM // 2) % HEAD_DIM
    values = tl.load(row + dims, mask=is_head[:, None], other=0.0).to(tl.float32)
    partners = tl.load(row + partner, mask=is_head[:, None] & ~is_value[:, None], other=0.0).to(tl.float32)
    rotated = (values * cos_of_head + partners * sin_of_head).to(out.dtype.element_ty)

    is_query = heads < NUM_HEADS
    tl.store(out + (token * NUM_HEADS + heads[:, None]) * HEAD_DIM + dims, rotated, mask=is_query[:, None])
    key_head = heads - NUM_HEADS
    is_key = ~is_query & ~is_value & (slot >= 0)
    tl.store(key_cache + (slot * NUM_KV_HEADS + key_head[:, None]) * HEAD_DIM + dims, rotated, mask=is_key[:, None])
    value_head = key_head - NUM_KV_HEADS
    is_stored_value = is_value & is_head & (slot >= 0)
    value_rows = value_cache + (slot * NUM_KV_HEADS + value_head[:, None]) * HEAD_DIM
    tl.store(value_rows + dims, rotated, mask=is_stored_value[:, None])
