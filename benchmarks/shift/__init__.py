"""A load that shifts from text to pictures to long answers, on real actors."""
