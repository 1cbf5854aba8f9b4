"""What a failed call to an actor means for the actor, and for the request."""

from __future__ import annotations

import grpc

from triptych.errors import IntegrityError, NotFound, Unavailable
from triptych.rpc.status import STATUS_DETAILS_KEY

# The same work may succeed elsewhere: an actor or link broke or drains, a tensor came damaged, its producer is gone.
RETRYABLE = (Unavailable, IntegrityError, NotFound)


def is_actor_lost(failure: grpc.aio.AioRpcError) -> bool:
    """The connection failed, as opposed to the actor saying UNAVAILABLE (it drains, or a peer of its own is gone).

    Handlers answer with details (`triptych/rpc/status.py`); a status that gRPC made itself has none.
    """
    is_from_handler = any(key == STATUS_DETAILS_KEY for key, _ in failure.trailing_metadata() or ())
    return failure.code() is grpc.StatusCode.UNAVAILABLE and not is_from_handler
