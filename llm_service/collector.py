"""Python's garbage collector beside a loop that must not stop."""

import gc


def spare_the_collector() -> None:
    """Takes what lives now, which is what stays, out of the collector's sight: a full collection of a process with
    torch loaded stops all its threads for 100 ms and more, in the middle of running streams."""
    gc.collect()
    gc.freeze()
