"""What a rank says about itself."""

from __future__ import annotations

import os

from llm_service.loading import LoadedModel
from triptych.transport.host import host_id
from triptych.v1 import admin_pb2


def describe_rank(rank: int, model: LoadedModel) -> admin_pb2.RankInfo:
    """Of the process that calls."""
    return admin_pb2.RankInfo(
        rank=rank,
        process_id=os.getpid(),
        host_id=host_id(),
        weights=admin_pb2.Weights(num_language_parameters=model.num_parameters, num_bytes=model.num_bytes),
    )
