"""Parts of `python -m benchmarks.transport`."""
