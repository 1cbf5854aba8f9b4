"""Media that a request names by URL, fetched without being led into places that only this process can reach."""
