"""`triptych top`: what the stages do right now."""
