"""The prefill and decode stages: one engine over a paged KV cache, served in three roles."""
