"""Draws, trains, measures and packs the small model that ships inside the package."""
