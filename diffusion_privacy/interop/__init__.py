"""Models that other programs trained, read as this one needs them."""
