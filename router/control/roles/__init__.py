"""Actors that change between stages: one process with both halves of the model, and the policy that says when."""
