"""Brings actors up, keeps them at their wanted numbers, and tells the dispatcher who can work."""
