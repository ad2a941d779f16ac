"""How much of a study a device handles at a time: as configured, or what `audit.memory_gb` leaves room for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity import lanes
from diffusion_privacy.settings import Audit, Study
from diffusion_privacy.types import Array, PyTree

_MOST = 256
"""Larger chunks gain nothing."""
_MAPS = 16
"""Feature maps of full size that no convolutional network here holds more of at once, with room to spare."""


def chunk_size(study: Study, score: PyTree, shape: tuple[int, ...]) -> int:
    """Lanes a device handles at a time: as configured, or as many as the memory budget allows."""
    if study.audit.chunk:
        return study.audit.chunk
    return lanes.chunk_for_budget(score, shape, study.audit.memory_gb * 2**30, ceiling=_MOST)


def images_at_once(audit: Audit, look: jax.tree_util.Partial, shape: tuple[int, ...], pixels: int, width: int) -> int:
    """Images (or latents) that a device sends through a convolutional network at a time.

    Where 256 of them fit by far, the compiler is not asked, and ``audit.chunk`` is not either.

    Args:
      audit: its ``chunk`` and ``memory_gb``.
      look: ``look(x[B, ...])``, with its parameters.
      shape: of one ``x``.
      pixels: of an image.
      width: channels of the network at full size.
    """
    budget = audit.memory_gb * 2**30
    if 4.0 * _MAPS * _MOST * pixels * width <= budget:
        return _MOST
    if audit.chunk:
        return min(audit.chunk, _MOST)
    return lanes.chunk_for_budget(jax.tree_util.Partial(_timeless, look), shape, budget, ceiling=_MOST)


def _timeless(look: Any, x: Array, t: Array) -> Any:
    del t
    return look(x)


def detector_at_once(study: Study, scores: PyTree, params: PyTree, image: tuple[int, ...]) -> int:
    """Images of this shape that the detector looks at at a time; ``scores(params, x)`` are its networks."""
    look = jax.tree_util.Partial(scores, params)
    return images_at_once(study.audit, look, image, int(np.prod(image[:2])), study.detector.network.get("channels", 32))


def draw_and_look(score: PyTree, detect: PyTree, x: Array, t: Array) -> tuple[Array, Array]:
    """For `chunk_size`, what a lane of the audit computes: a step of the score, and the detector of what is drawn."""
    return score(x, t), detect(x, jnp.zeros(x.shape[0], jnp.int32))
