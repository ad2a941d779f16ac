"""Atoms on which sampling probabilities are known exactly, whatever the number of steps.

A cyclic group of order n acts on R^d by rotating plane j by 2π k m_j / n. The atoms are one orbit of it. Prior, noise,
score and every reverse kernel commute with the rotations, so the sampler AS RUN lands in the Voronoi cell of each atom
with probability exactly 1/n: no limit of small steps, no simulation is needed for the truth.
"""

from __future__ import annotations

import numpy as np


def cyclic_orbit(n: int, d: int, seed: int, radius: float = 1.0) -> np.ndarray:
    """``[n, d]`` atoms, the orbit of a random point under a cyclic group of order n; d even.

    The root mean square of a coordinate is `radius`.
    """
    if d % 2:
        raise ValueError("d must be even: the group rotates planes")
    rng = np.random.default_rng(seed)
    planes = d // 2
    # One frequency must generate the group, or atoms coincide.
    freq = rng.integers(1, n, size=planes)
    freq[0] = 1
    amplitude = rng.gamma(2.0, size=planes)
    amplitude *= radius * np.sqrt(d / np.sum(amplitude**2))
    phase = rng.uniform(0, 2 * np.pi, size=planes)
    angle = 2 * np.pi * np.outer(np.arange(n), freq) / n + phase
    return np.stack([amplitude * np.cos(angle), amplitude * np.sin(angle)], axis=-1).reshape(n, d)
