"""Scaling policies in virtual time: a day of traffic, the three stages, and what the best fixed allocation needs."""
