# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""A weight that a later kernel reads, on its way into the L2 cache while this one leaves the memory idle.

The attention of one token leaves it idle for some 6 microseconds. On an H200 8 to 16 MB of the gate_up weight fetched
meanwhile make a step of one token 2 percent shorter. The o weight fetched before it, or the next qkv weight at the end
of down, made it longer: they delay what is needed first. Needs compute capability 9.0.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

# What one instruction fetches is a multiple of this.
_ALIGNMENT = 128
WARP_LANES = 32


@dataclass(frozen=True)
class Upcoming:
    """A weight, contiguous, of which so many bytes may come into the L2 cache."""

    weight: Tensor
    num_bytes: int

    def lane_bytes(self, num_lanes: int) -> int:
        """What each of the lanes fetches, so that all of it lies inside of the weight; about `num_bytes` in all."""
        return min(self.num_bytes, self.weight.nbytes) // num_lanes // _ALIGNMENT * _ALIGNMENT


@triton.jit
def fetch_upcoming(weight, program, LANES: tl.constexpr, LANE_BYTES: tl.constexpr):
    """Each program asks for its LANES * LANE_BYTES of a weight, and waits for nothing. LANES: threads of a program."""
    if LANE_BYTES > 0:
        lanes = program * LANES + tl.arange(0, LANES)
        addresses = weight.to(tl.int64) + lanes.to(tl.int64) * LANE_BYTES
        sizes = tl.full((LANES,), LANE_BYTES, tl.int32)
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;", "=r,l,r", [addresses, sizes], dtype=tl.int32,
            is_pure=False, pack=1,
        )  # fmt: skip
