"""Sections of the kernel benchmark (`python -m benchmarks.kernels`); each runs in a process of its own."""
