"""GraphCapture: a computation of fixed shape, captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch


class GraphCapture:
    """Captures graphs that share their memory: they are replayed one at a time, on the stream current then."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = stream

    def of(self, compute: Callable[[], None]) -> Callable[[], None]:
        """What replays `compute`, which is run once before: it reads and writes tensors that stay where they are."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # Once outside of the capture: kernels are compiled and loaded, libraries take their work space.
            compute()
            self._stream.synchronize()
            # Other threads may use the device meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                compute()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph.replay
