"""What goes through the stage, from a picture's bytes to its embedding."""

from dataclasses import dataclass

from torch import Tensor

from triptych.models.qwen2_5_vl.grid import Grid
from triptych.transport.ticket import Ticket
from triptych.v1 import common_pb2


@dataclass(frozen=True)
class MediaItem:
    """One picture or video to encode. `field` names it in messages, as `items[2].media`."""

    content_key: str
    grid: Grid
    media: common_pb2.Media
    field: str


@dataclass(frozen=True)
class EncodeItem:
    """A picture or video whose embedding goes to whoever fetches the ticket."""

    ticket: Ticket
    media: common_pb2.Media


@dataclass(frozen=True)
class Embedding:
    """An item's embedding [num_tokens, hidden] on the engine's device, and how it came to be.

    With `is_cache_hit` it came from the cache, or from work that had begun for somebody else: then all of the wait
    counts as queue_s. `finished_at` is on the monotonic clock.
    """

    tensor: Tensor
    is_cache_hit: bool
    queue_s: float
    preprocess_s: float
    encode_s: float
    batch_items: int
    finished_at: float
