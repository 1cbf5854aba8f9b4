# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""The next token of every row, greedy or drawn with a temperature, in one pass over the vocabulary and without a sort.

A draw is the Gumbel-max trick: argmax(logit + temperature * gumbel noise) is distributed as softmax(logit /
temperature). The noise of a token is a function of (seed, position, token id) alone, Philox 4x32-10 (Salmon et al.,
2011) with the seed as key, so neither the batch nor the number of vocabulary splits changes a draw.
Floor: bytes. B * vocab logits are read once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.kernels.launch import launch_options, wait_for_previous

_BLOCK = 2048
_MAX_SPLITS = 128
_TARGET_PROGRAMS = 1024


def num_vocabulary_splits(num_rows: int, vocab_size: int) -> int:
    """How many programs share a row: enough of them in all to fill the GPU, each with at least one block of its own."""
    wanted = -(-_TARGET_PROGRAMS // max(1, num_rows))
    return max(1, min(wanted, -(-vocab_size // _BLOCK), _MAX_SPLITS))


def sample(
    logits: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    out: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """Token ids int64 [B] of `logits` [B, vocab], float32 or bfloat16, rows may be strided.

    temperatures: float32 [B], 0 takes the highest logit (of equal ones the lowest id). seeds, positions: int64 [B], all
    64 bits of the seed and the low 32 of the position count. An id is always inside the vocabulary, whatever the
    logits.
    """
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device) if out is None else out
    assert logits.stride(1) == 1 and out.dtype == seeds.dtype == positions.dtype == torch.int64
    if num_rows == 0:
        return out
    num_splits = num_vocabulary_splits(num_rows, vocab_size)
    best_values = torch.empty((num_rows, num_splits), dtype=torch.float32, device=logits.device)
    best_ids = torch.empty((num_rows, num_splits), dtype=torch.int32, device=logits.device)
    _sample_split_kernel[(num_rows, num_splits)](
        logits,
        temperatures,
        seeds,
        positions,
        best_values,
        best_ids,
        logits.stride(0),
        num_splits,
        VOCAB_SIZE=vocab_size,
        BLOCK=_BLOCK,
        PDL=pdl,
        num_warps=4,
        **launch_options(pdl),
    )
    _sample_merge_kernel[(num_rows,)](
        best_values,
        best_ids,
        out,
        num_splits,
        BLOCK=_MAX_SPLITS,
        PDL=pdl,
        num_warps=1,
        **launch_options(pdl),
    )
    return out


def sample_reference(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    return perturbed_logits_reference(logits, temperatures, seeds, positions).argmax(-1)


def perturbed_logits_reference(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """logit + temperature * gumbel noise, float32 [B, vocab]; the noise comes from `philox_reference`."""
    vocab_size = logits.shape[1]
    tokens = torch.arange(vocab_size, device=logits.device)
    draws = philox_reference(seeds[:, None], positions[:, None] & 0xFFFFFFFF, tokens[None, :] // 4)
    bits = draws.gather(0, (tokens % 4).expand(1, *draws.shape[1:]))[0]
    uniform = (bits.float() + 0.5) * 2.0**-32
    exponential = torch.where(uniform < 2.0**-12, uniform + 0.5 * uniform * uniform, -torch.log(1.0 - uniform))
    noise = -torch.log(exponential.clamp(max=16.0))
    return logits.float() + torch.where(temperatures[:, None] > 0, temperatures[:, None] * noise, 0.0)


def philox_reference(seed: Tensor, position: Tensor, counter: Tensor) -> Tensor:
    """Philox 4x32-10 with counter (counter, position, 0, 0) and key `seed`: 32-bit words as int64, [4, *broadcast
    shape]."""
    seed, position, counter = torch.broadcast_tensors(seed, position, counter)  # type: ignore[no-untyped-call]
    c0, c1, c2, c3 = counter, position, torch.zeros_like(counter), torch.zeros_like(counter)
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        high_b, low_b = _multiply_32(0xCD9E8D57, c2)
        high_a, low_a = _multiply_32(0xD2511F53, c0)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return torch.stack((c0, c1, c2, c3))


def _multiply_32(factor: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of factor * values, both unsigned 32 bit in int64, without overflowing it."""
    low_product = factor * (values & 0xFFFF)
    high_product = factor * (values >> 16) + (low_product >> 16)
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)


@triton.jit
def _gumbel_noise(bits):
    """-log(-log(1 - u)) for u = bits / 2^32. Small u, where the large noise is, keep their full precision."""
    uniform = (bits.to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
    exponential = tl.where(uniform < 1.0 / 4096.0, uniform + 0.5 * uniform * uniform, -tl.log(1.0 - uniform))
    return -tl.log(tl.minimum(exponential, 16.0))


@triton.jit(do_not_specialize=["num_splits"])
def _sample_split_kernel(
    logits,
    temperatures,
    seeds,
    positions,
    best_values,
    best_ids,
    logits_stride,
    num_splits,
    VOCAB_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    temperature = tl.load(temperatures + row)
    seed = tl.load(seeds + row)
    position = tl.load(positions + row).to(tl.uint32)
    BLOCKS: tl.constexpr = (VOCAB_SIZE + BLOCK - 1) // BLOCK
    blocks_per_split = tl.cdiv(BLOCKS, num_splits)

    lanes = tl.arange(0, BLOCK)
    best_of_lane = tl.full((BLOCK,), float("-inf"), tl.float32)
    id_of_lane = tl.minimum(split * blocks_per_split * BLOCK + lanes, VOCAB_SIZE - 1)
    for index in range(blocks_per_split):
        first = (split * blocks_per_split + index) * BLOCK
        tokens = first + lanes
        values = tl.load(logits + row * logits_stride + tokens, mask=tokens < VOCAB_SIZE, other=float("-inf"))
        values = values.to(tl.float32)
        if temperature > 0.0:
            counters = (first // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
            zeros = tl.zeros_like(counters)
            bits_0, bits_1, bits_2, bits_3 = tl.philox(seed, counters, zeros + position, zeros, zeros)
            bits = tl.join(tl.join(bits_0, bits_2), tl.join(bits_1, bits_3)).reshape((BLOCK,))
            values += temperature * _gumbel_noise(bits)
        is_better = values > best_of_lane
        best_of_lane = tl.where(is_better, values, best_of_lane)
        id_of_lane = tl.where(is_better, tokens, id_of_lane)

    best = tl.max(best_of_lane, axis=0)
    # The lowest id among equals, as argmax has it, also when every value is -inf.
    best_id = tl.min(tl.where(best_of_lane == best, id_of_lane, VOCAB_SIZE - 1), axis=0)
    tl.store(best_values + row * num_splits + split, best)
    tl.store(best_ids + row * num_splits + split, best_id)


@triton.jit(do_not_specialize=["num_splits"])
def _sample_merge_kernel(best_values, best_ids, out, num_splits, BLOCK: tl.constexpr, PDL: tl.constexpr):
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, BLOCK)
    is_split = splits < num_splits
    values = tl.load(best_values + row * num_splits + splits, mask=is_split, other=float("-inf"))
    ids = tl.load(best_ids + row * num_splits + splits, mask=is_split, other=2147483647)
    is_best = is_split & (values == tl.max(values, axis=0))
    best_id = tl.min(tl.where(is_best, ids, 2147483647), axis=0)
    tl.store(out + row, best_id.to(tl.int64))
