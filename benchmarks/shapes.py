"""Sizes that both sides of a benchmark share. Needs numpy alone: a peer must not import JAX."""

from __future__ import annotations

import numpy as np

FLOW_BATCH = 64
FLOW_IMAGES = 256
UNET_BATCH = 64
SAMPLED = 32
DDIM_STEPS = 50
SWEEP_STEPS = 20
SWEEP_LEVELS = (4, 8, 12, 16, 20)
SWEEP_DRAWS = 32
LIKELIHOOD_IMAGES = 8
TOLERANCE = 1e-5
WANTED_ERROR = 1e-3
NOISE_ROWS = 1024
NOISE_DIM = 784
AUDIT_BATCHES = (160, 320, 512)


def images(count: int, shape: tuple[int, int, int] = (28, 28, 1)) -> tuple[np.ndarray, np.ndarray]:
    """``count`` random images of 256 grey levels in [-1, 1], float32, and classes 0 … 9."""
    rng = np.random.default_rng(1)
    return (2 * rng.integers(0, 256, (count, *shape)) / 255 - 1).astype(np.float32), rng.integers(0, 10, count)
