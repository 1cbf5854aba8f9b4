"""Tensor parallelism: one LLM actor over several GPUs, a leader and its followers, each a process of its own."""
