"""Authenticity: is a generated record further from its nearest training record than that one is from its own neighbour?

Alaa et al., "How Faithful is Your Synthetic Data?" (arXiv 2102.08921, section 4.3), known as AuthPct. A copy is closer
to its original than any other training record; a record of the same law that the model never saw is closer about as
often as not. The number for held-out records is the yardstick; no share is good or bad by itself.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from diffusion_privacy.anonymity.intervals import Rate, rate
from diffusion_privacy.audits import neighbours
from diffusion_privacy.errors import InputError


@dataclasses.dataclass(frozen=True)
class Authenticity:
    """How many generated records are authentic. Smaller means that more is copied.

    Attributes:
      authentic: bool [M].
      share: their share with its exact interval over draws of the model, given the training set.
    """

    authentic: np.ndarray
    share: Rate


def authenticity(
    generated: np.ndarray, training: np.ndarray, *, level: float = 0.95, chunk: int = 1024
) -> Authenticity:
    """A_j = 1[d(x̂_j, x_i) > d(x_i, nearest other training record)] with x_i the training record nearest to x̂_j.

    Duplicates in the training set have a distance of 0 to each other: next to them only an exact copy is not authentic.

    Args:
      generated: ``[M, ...]``, independent draws of the model.
      training: its training records ``[N, ...]``, N >= 2.
      level: two-sided confidence level.
      chunk: see `neighbours.nearest`.

    Raises:
      InputError: shapes that do not fit, values that are not finite, or a single training record.
    """
    one = neighbours.rows(generated, "authenticity: generated")
    two = neighbours.rows(training, "authenticity: training")
    if len(two) < 2:
        raise InputError("authenticity: expected at least two training records, got one")
    own, index = neighbours.nearest(one, two, chunk=chunk)
    # Of the training records only those that are some image's nearest are asked for their own neighbour.
    asked, back = np.unique(index[:, 0], return_inverse=True)
    # The record itself is among its two nearest, or a duplicate at the same distance 0.
    between = neighbours.nearest(two[asked], two, 2, chunk=chunk)[0][:, 1]
    authentic = own[:, 0] > between[back.reshape(-1)]
    return Authenticity(authentic, rate(int(authentic.sum()), len(authentic), level))
