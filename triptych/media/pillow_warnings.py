"""What Pillow says about files on the side."""

import warnings


def mute_pillow() -> None:
    """Ignores Pillow's warnings from now on, in this process.

    Each tells of damaged metadata in words of its own: whoever sends files could write lines into the log, and Python
    remembers every different one for good. What matters about a file is an error of its request.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
