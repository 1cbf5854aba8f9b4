# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-not-found,import-untyped"
"""What all launches share: block sizes, and programmatic dependent launch (PDL).

With `pdl=True` a kernel may start while the one before it on the stream still drains: it reads what no kernel writes
(weights) first and then waits. It is safe whatever the kernel before is, because each kernel here waits for all of it
before it touches anything that changes. Needs compute capability 9.0.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def power_of_two_at_least(number: int) -> int:
    """The smallest power of two that is >= number >= 1: Triton's blocks have such sizes."""
    return 1 << (number - 1).bit_length()


def launch_options(pdl: bool) -> dict[str, bool]:
    """Keyword arguments of a launch."""
    return {"launch_pdl": True} if pdl else {}


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """To be called by every program, also by one with nothing to do: the next kernel counts on this one's wait."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
