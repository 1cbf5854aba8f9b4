"""Model families. Each lives in a package of its own."""
