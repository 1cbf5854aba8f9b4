"""Lane "cuda_ipc": the producer copies the rows into a slab of its GPU memory, the consumer maps it and copies out."""
