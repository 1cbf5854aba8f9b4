"""What one actor does in the simulation: an H200's measured rates with the 7B model, all divided by one number."""

from __future__ import annotations

from dataclasses import dataclass

# Measured (benchmarks/results/2026-11-23-llm-engine-h200.json): 21,700 tokens prefilled in 0.616 s; a step of one
# sequence 3.89 ms; 128 sequences 11,323 tokens/s, i.e. 11.3 ms a step; 13.4 s from start to ready.
H200_PREFILL_TOKENS_PER_S = 21_700 / 0.616
H200_STEP_S = 0.00389
H200_STEP_STREAM_S = (128 / 11_323 - H200_STEP_S) / 127
# Goal, not measurement, of the encoder (benchmarks/targets.toml): 65 pictures of 4,784 patches a second.
H200_PATCHES_PER_S = 65 * 4_784
# Choice: as much KV cache as 64 streams of a mean request need.
KV_TOKENS = 200_000


@dataclass(frozen=True)
class ActorRates:
    """device_share: what part of an H200 one actor is.

    The day's traffic is that of one service. Spread over whole H200s it would need one or two of each stage, and there
    would be nothing to scale; a multiple of it takes too long to simulate.
    """

    device_share: float = 1 / 8
    start_s: float = 30.0  # choice: measured 13.4 s, and as much again to find and boot a place for it
    kv_tokens: int = KV_TOKENS

    @property
    def patches_per_s(self) -> float:
        return self.device_share * H200_PATCHES_PER_S

    @property
    def prompt_tokens_per_s(self) -> float:
        return self.device_share * H200_PREFILL_TOKENS_PER_S

    def step_s(self, num_streams: int) -> float:
        """One decode step, one token for each stream."""
        return (H200_STEP_S + H200_STEP_STREAM_S * num_streams) / self.device_share

    def max_streams(self, tpot_s: float) -> int:
        """Streams that one actor decodes within tpot_s each."""
        return int((tpot_s * self.device_share - H200_STEP_S) / H200_STEP_STREAM_S)
