"""The one training loop, its state, checkpoints, metrics, randomness and device layout."""
