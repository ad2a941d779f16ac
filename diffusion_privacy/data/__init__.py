"""Records, sources and the deterministic input pipeline."""
