"""Construction of corpora from public sources."""
