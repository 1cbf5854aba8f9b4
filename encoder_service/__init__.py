"""The encode stage: pictures and videos in, embeddings held under leases out."""
