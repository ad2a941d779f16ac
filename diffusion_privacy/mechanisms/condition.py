"""The condition of a release: published as it is, or randomised.

The flow is evaluated with the condition that is published: encode and decode both use the randomised one, so that the
latent step is a function of (record, published condition) and composes after it.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import calibration, noise
from diffusion_privacy.mechanisms.discrete import uniform_below
from diffusion_privacy.mechanisms.relation import Neighbours, Relation, require_relation

if TYPE_CHECKING:
    import dp_accounting


class ConditionMechanism(Protocol):
    """How the class of a record is released."""

    name: ClassVar[str]

    @property
    def classes(self) -> int:
        """Number of classes K."""
        ...

    def many(self, draw: noise.RandomBytes, labels: np.ndarray) -> np.ndarray:
        """Published classes int32 [B] of private classes [B], each record by itself."""
        ...

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """Privacy event of one release of one condition; randomised response is to be read under REPLACE_ONE."""
        ...


def check_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """``labels`` as int64 [B]; `InputError` naming the first record whose class is not in 0 … classes − 1."""
    values = np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(f"labels: expected one integer class per record, got {values.dtype} of shape {values.shape}")
    wrong = np.flatnonzero((values < 0) | (values >= classes))
    if wrong.size:
        raise InputError(f"labels: record {wrong[0]} has class {values[wrong[0]]}, expected 0 to {classes - 1}")
    return values.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class PublicCondition:
    """The class is released exactly. Private only for neighbours that share it."""

    classes: int
    name: ClassVar[str] = "public"

    def many(self, draw: noise.RandomBytes, labels: np.ndarray) -> np.ndarray:
        """The labels themselves."""
        return check_labels(labels, self.classes).astype(np.int32)

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """Nothing where conditions cannot differ (SAME_CONDITION, or one class only); else not private."""
        import dp_accounting

        if require_relation(relation).neighbours is Neighbours.SAME_CONDITION or self.classes == 1:
            return dp_accounting.NoOpDpEvent()
        return dp_accounting.NonPrivateDpEvent()


@dataclasses.dataclass(frozen=True)
class RandomizedResponse:
    """k-ary randomised response (Kairouz, Bonawitz & Ramage, ICML 2016).

    Keeps the class with probability e^ε/(e^ε + K − 1), otherwise publishes one of the other K − 1 uniformly. The
    probability ratio of any published class under any two classes is at most e^ε, attained: (ε, 0)-private for
    replacing the condition of one record.

    The draw compares 62 random bits with an integer threshold, rounded so that the class is kept no more often than
    stated. A float32 uniform would not do: at ε = 16 the chance of change falls below its grid.
    """

    epsilon: float
    classes: int
    name: ClassVar[str] = "randomized_response"

    def __post_init__(self) -> None:
        calibration.check_epsilon(self.epsilon, "condition.epsilon")
        if self.epsilon > 30.0:
            raise InputError(
                f"condition.epsilon: expected at most 30, beyond which nothing changes, got {self.epsilon!r}"
            )
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or not 2 <= self.classes <= 2**20:
            raise InputError(f"condition.classes: expected an integer within [2, 2^20], got {self.classes!r}")

    @property
    def keep_probability(self) -> float:
        """e^ε/(e^ε + K − 1)."""
        return 1.0 / (1.0 + (self.classes - 1) * math.exp(-self.epsilon))

    def _flip_threshold(self) -> int:
        """Ceiling of 2^62 P(change), with the rounding errors of exp and of the quotient counted upwards."""
        others = (self.classes - 1) * math.exp(-self.epsilon)
        return math.ceil(Fraction(others / (1.0 + others)) * Fraction(1.0 + 2.0**-48) * 2**62)

    def many(self, draw: noise.RandomBytes, labels: np.ndarray) -> np.ndarray:
        """Published classes int32 [B]; every record spends its own bytes of ``draw``.

        Raises:
          InputError: a label outside 0 … K − 1.
        """
        truth = check_labels(labels, self.classes)
        flip = uniform_below(np.full(truth.size, 2**62), draw) < self._flip_threshold()
        other = uniform_below(np.full(truth.size, self.classes - 1), draw)
        other += other >= truth
        return np.where(flip, other, truth).astype(np.int32)

    def __call__(self, key: bytes, label: int) -> int:
        """One record; ``key`` is 32 fresh bytes."""
        return int(self.many(noise.keyed_bytes(key), np.array([label]))[0])

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """Nothing when the condition may not differ; else k randomised responses (dp-accounting's p = P(uniform))."""
        import dp_accounting

        if require_relation(relation).neighbours is Neighbours.SAME_CONDITION:
            return dp_accounting.NoOpDpEvent()
        change = (1.0 - self.keep_probability) * self.classes / (self.classes - 1)
        one = dp_accounting.RandomizedResponseDpEvent(noise_parameter=change, num_buckets=self.classes)
        k = relation.records_per_person
        return one if k == 1 else dp_accounting.SelfComposedDpEvent(one, k)
