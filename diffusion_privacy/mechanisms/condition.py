"""The condition of a release: published as it is, or randomised.

The flow is evaluated with the condition that is published: encode and decode both use the randomised one, so that the
latent step is a function of (record, published condition) and composes after it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
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
    """How the condition of a record is released: its class, or its binary attributes."""

    name: ClassVar[str]
    subject: ClassVar[str]
    """``"class"`` or ``"attributes"``, for sentences."""

    def many(self, draw: noise.RandomBytes, labels: np.ndarray) -> np.ndarray:
        """Published classes int32 [B] of private ones, or attributes int32 [B, A]; each record by itself."""
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


def check_attributes(labels: np.ndarray, attributes: int) -> np.ndarray:
    """``labels`` as int64 [B, A] of 0 and 1; `InputError` naming the first record and attribute that are not."""
    values = np.asarray(labels)
    if values.ndim != 2 or values.shape[1] != attributes or values.dtype.kind not in "iub":
        raise InputError(
            f"attributes: expected {attributes} whole numbers per record, got {values.dtype} of shape {values.shape}"
        )
    wrong = np.argwhere((values != 0) & (values != 1))
    if wrong.size:
        record, attribute = wrong[0]
        raise InputError(
            f"attributes: record {record} has attribute {attribute} = {values[record, attribute]}, expected 0 or 1"
        )
    return values.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class PublicCondition:
    """The class is released exactly. Private only for neighbours that share it."""

    classes: int
    name: ClassVar[str] = "public"
    subject: ClassVar[str] = "class"

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
    subject: ClassVar[str] = "class"

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
        # Not from 1 − P(keep), which loses its digits at large ε: at 30 the ε of the event fell short by a thousandth.
        others = (self.classes - 1) * math.exp(-self.epsilon)
        change = others / (1.0 + others) * self.classes / (self.classes - 1)
        one = dp_accounting.RandomizedResponseDpEvent(noise_parameter=change, num_buckets=self.classes)
        k = relation.records_per_person
        return one if k == 1 else dp_accounting.SelfComposedDpEvent(one, k)


@dataclasses.dataclass(frozen=True)
class PublicAttributes:
    """All binary attributes are released exactly. Private only for neighbours that share them all."""

    attributes: int
    name: ClassVar[str] = "public_attributes"
    subject: ClassVar[str] = "attributes"

    def many(self, draw: noise.RandomBytes, labels: np.ndarray) -> np.ndarray:
        """The attributes themselves."""
        return check_attributes(labels, self.attributes).astype(np.int32)

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """Nothing under SAME_CONDITION; else not private."""
        import dp_accounting

        may_differ = require_relation(relation).neighbours is Neighbours.ANY_CONDITION
        return dp_accounting.NonPrivateDpEvent() if may_differ else dp_accounting.NoOpDpEvent()


@dataclasses.dataclass(frozen=True)
class RandomizedAttributes:
    """A multi-hot condition of A binary attributes, each through randomised response of its own.

    (Σ ε_j, 0)-private for replacing all attributes of a record at once: the responses are independent, and each
    attribute is kept with probability e^ε_j/(e^ε_j + 1). The sum is attained by two records that differ in every
    attribute. With ε_y = 1 over 40 attributes each is kept with probability .506: such a condition says almost nothing.

    Attributes:
      epsilons: ε_j of each attribute, in nats, in the order of the columns.
    """

    epsilons: tuple[float, ...]
    name: ClassVar[str] = "randomized_response_attributes"
    subject: ClassVar[str] = "attributes"

    def __post_init__(self) -> None:
        if not self.epsilons:
            raise InputError("condition.epsilons: expected one ε for each attribute, got none")
        _ = self.parts

    @classmethod
    def shared(cls, epsilon: float, shares: Sequence[float]) -> RandomizedAttributes:
        """``epsilon`` over all attributes together, in these shares: positive numbers that sum to 1.

        Raises:
          InputError: shares that are none, or an ε out of range.
        """
        values = [float(share) for share in shares]
        if not values or min(values) <= 0.0 or abs(math.fsum(values) - 1.0) > 1e-9:
            raise InputError(f"condition.shares: expected positive shares that sum to 1, got {values}")
        return cls(tuple(calibration.check_epsilon(epsilon, "condition.epsilon") * share for share in values))

    @classmethod
    def even(cls, epsilon: float, attributes: int) -> RandomizedAttributes:
        """``epsilon`` over ``attributes`` attributes together, the same for each."""
        if isinstance(attributes, bool) or not isinstance(attributes, int) or attributes < 1:
            raise InputError(f"condition.attributes: expected an integer >= 1, got {attributes!r}")
        return cls.shared(epsilon, [1.0 / attributes] * attributes)

    @functools.cached_property
    def parts(self) -> tuple[RandomizedResponse, ...]:
        """One binary response an attribute."""
        return tuple(RandomizedResponse(epsilon, 2) for epsilon in self.epsilons)

    @property
    def epsilon(self) -> float:
        """ε_y = Σ ε_j for replacing all attributes of one record."""
        return math.fsum(self.epsilons)

    def many(self, draw: noise.RandomBytes, labels: np.ndarray) -> np.ndarray:
        """Published attributes int32 [B, A]; every attribute of every record spends its own bytes of ``draw``.

        Raises:
          InputError: another number of attributes, or one that is neither 0 nor 1.
        """
        truth = check_attributes(labels, len(self.epsilons))
        return np.stack([part.many(draw, truth[:, j]) for j, part in enumerate(self.parts)], axis=1)

    def __call__(self, key: bytes, attributes: np.ndarray) -> np.ndarray:
        """One record, int32 [A]; ``key`` is 32 fresh bytes."""
        return self.many(noise.keyed_bytes(key), np.asarray(attributes)[None])[0]

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """The responses composed; nothing when the condition may not differ."""
        import dp_accounting

        if require_relation(relation).neighbours is Neighbours.SAME_CONDITION:
            return dp_accounting.NoOpDpEvent()
        return dp_accounting.ComposedDpEvent([part.event(relation) for part in self.parts])
