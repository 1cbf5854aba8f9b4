"""Triton kernels of the language engine, each beside its plain-torch reference.

They need the package `triton` and a GPU (or TRITON_INTERPRET=1). Import a kernel from its own file; nothing is
imported here, so that a machine without Triton can import the rest of the package. Every function takes preallocated
outputs, launches without reading anything on the host, and may be captured in a CUDA graph.
"""
