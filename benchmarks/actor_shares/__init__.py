"""Actors that each have a share of a core, as a device of their own would have its rate."""
