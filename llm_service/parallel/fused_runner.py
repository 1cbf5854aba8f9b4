"""ShardedFusedRunner: the fused runner of one rank."""

from __future__ import annotations

from llm_service.fused_runner import FusedModelRunner


class ShardedFusedRunner(FusedModelRunner):
    """Chooses how to compute a step by its shape alone. Measuring would let the ranks choose differently, and launch
    other numbers of collectives while they do."""

    def _tune(self) -> None:
        return None
