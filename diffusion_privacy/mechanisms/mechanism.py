"""The latent mechanisms, each for ONE record: clip, add noise. The caller vmaps over records with one key for each.

Notation: C clip norm, Δ sensitivity, σ or b noise scale. Two clipped latents lie in one ball of radius C, so they
differ by at most Δ = 2C in its norm, whatever the two records are: that is the sensitivity for replacing a record, and
it is attained (antipodal latents). For the records of one person, k at most, see `Relation`.

Every `event` is written for dp-accounting with the noise multiplier σ/Δ (or b/Δ), Δ = 2C included, to be read under
its ADD_OR_REMOVE_ONE relation. dp-accounting's own REPLACE_ONE must not be used for them: its PLD accountant would
double the sensitivity once more (Gaussian) or refuse (Laplace), and its RDP accountant doubles nothing at all.

The proofs are for real numbers. The float32 noise of these classes approximates them (`noise` says how); the classes in
`discrete` have no such gap.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import calibration, clipping, noise
from diffusion_privacy.mechanisms.relation import Relation, require_relation
from diffusion_privacy.rounding import promised
from diffusion_privacy.types import Array

if TYPE_CHECKING:
    import dp_accounting


class Mechanism(Protocol):
    """A private release of ONE record's latent."""

    name: ClassVar[str]
    arithmetic: ClassVar[str]

    @property
    def norm(self) -> clipping.Norm:
        """Norm of the ball, or of the metric."""
        ...

    @property
    def noise_scale(self) -> float:
        """σ (Gaussian) or b (Laplace) of the noise on each coordinate."""
        ...

    def __call__(self, key: Any, z: Any) -> Any:
        """``z[D] -> z̃[D]``. ``key`` is used for this record alone."""
        ...

    def sensitivity(self, relation: Relation) -> float:
        """Largest distance, in `norm`, between the clipped latents of two neighbours; inf when there is no bound."""
        ...

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """The privacy event of one release under ``relation``; read under ADD_OR_REMOVE_ONE (see the module)."""
        ...


class Scalable(Protocol):
    """A mechanism whose noise scale may be an argument of a compiled program, so that one serves every ε.

    ``m(key, z)`` is ``m.unscaled().at_scale(key, z, m.noise_scale)``, and mechanisms that differ in their noise alone
    have equal ``unscaled()``. The scale is not checked here: take it from `Mechanism.noise_scale`.
    """

    def at_scale(self, key: Array, z: Array, scale: Array | float) -> Array:
        """One record, ``z[D] -> z̃[D]`` float32, with this noise scale."""
        ...

    def unscaled(self) -> Scalable:
        """What all scales have in common; hashable."""
        ...


@functools.partial(jax.jit, static_argnums=0)
def many_at_scale(mechanism: Scalable, scale: Array | float, keys: Array, z: Array) -> Array:
    """``z[B, D] -> z̃[B, D]``, one key a record; compiled once for equal ``mechanism``, which should be `unscaled`."""
    return jax.vmap(lambda key, row: mechanism.at_scale(key, row, scale))(keys, z)


def positive(value: float, field: str) -> float:
    """``value`` as a float; `InputError` unless finite and positive."""
    number = float(value)
    if not (math.isfinite(number) and number > 0.0):
        raise InputError(f"{field}: expected a finite number > 0, got {value!r}")
    return number


@dataclasses.dataclass(frozen=True)
class GaussianMechanism:
    """z̃ = clip₂(z, C) + σ·N(0, I).

    Guarantee: for neighbours that differ in k records of one person the stacked releases differ by Δ = 2C√k in L2, so
    the release is (ε, δ)-private for every pair with Φ(Δ/2σ − εσ/Δ) − e^ε Φ(−Δ/2σ − εσ/Δ) <= δ (Balle & Wang 2018,
    theorem 8), and Δ/σ-Gaussian-private. The bound is attained by antipodal latents of norm C.
    """

    clip_norm: float
    sigma: float
    name: ClassVar[str] = "gaussian"
    arithmetic: ClassVar[str] = "float32 noise, lowest bits rounded off; threefry-2x32 with 64-bit keys"

    def __post_init__(self) -> None:
        clipping.check_clip_norm(self.clip_norm)
        positive(self.sigma, "sigma")

    @classmethod
    def calibrated(
        cls, epsilon: float, delta: float, clip_norm: float, relation: Relation, records: int
    ) -> GaussianMechanism:
        """The least noise that is (epsilon, delta)-private under ``relation``.

        Raises:
          InputError: ε <= 0, δ outside (0, 1) or >= 1/records, C <= 0, relation unspecified.
        """
        factor = require_relation(relation).l2_factor()
        radius = clipping.check_clip_norm(clip_norm)
        return cls(radius, calibration.gaussian_multiplier(epsilon, delta, records) * 2.0 * radius * factor)

    @property
    def norm(self) -> clipping.Norm:
        return "l2"

    @property
    def noise_scale(self) -> float:
        return self.sigma

    def __call__(self, key: Array, z: Array) -> Array:
        """One record: ``z[D] -> z̃[D]``, float32."""
        return self.at_scale(key, z, self.sigma)

    def at_scale(self, key: Array, z: Array, scale: Array | float) -> Array:
        """The same with σ = ``scale``, see `Scalable`."""
        clipped = clipping.clip(z, self.clip_norm, self.norm)
        return noise.add(clipped, noise.unit_gaussian(key, z.shape[0]), scale)

    def unscaled(self) -> GaussianMechanism:
        """The same with σ = 1."""
        return dataclasses.replace(self, sigma=1.0)

    def sensitivity(self, relation: Relation) -> float:
        """2C√k in L2."""
        return 2.0 * self.clip_norm * require_relation(relation).l2_factor()

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """Gaussian with noise multiplier σ/(2C√k)."""
        import dp_accounting

        return dp_accounting.GaussianDpEvent(self.sigma / self.sensitivity(relation))


@dataclasses.dataclass(frozen=True)
class LaplaceMechanism:
    """z̃ = clip₁(z, C) + Laplace(b) on each coordinate.

    Guarantee: neighbours differ by Δ = 2Ck in L1, so the density ratio of the releases is at most e^{Δ/b}: (Δ/b, 0)-
    private (Dwork, McSherry, Nissim, Smith 2006). Attained by antipodal latents on one axis.
    """

    clip_norm: float
    scale: float
    name: ClassVar[str] = "laplace"
    arithmetic: ClassVar[str] = "float32 noise, lowest bits rounded off; threefry-2x32 with 64-bit keys"

    def __post_init__(self) -> None:
        clipping.check_clip_norm(self.clip_norm)
        positive(self.scale, "scale")

    @classmethod
    def calibrated(cls, epsilon: float, clip_norm: float, relation: Relation) -> LaplaceMechanism:
        """The least noise that is (epsilon, 0)-private under ``relation``.

        Raises:
          InputError: ε <= 0, C <= 0, relation unspecified.
        """
        factor = require_relation(relation).l1_factor()
        radius = clipping.check_clip_norm(clip_norm)
        return cls(radius, calibration.laplace_multiplier(epsilon) * 2.0 * radius * factor)

    @property
    def norm(self) -> clipping.Norm:
        return "l1"

    @property
    def noise_scale(self) -> float:
        return self.scale

    def __call__(self, key: Array, z: Array) -> Array:
        """One record: ``z[D] -> z̃[D]``, float32."""
        return self.at_scale(key, z, self.scale)

    def at_scale(self, key: Array, z: Array, scale: Array | float) -> Array:
        """The same with b = ``scale``, see `Scalable`."""
        clipped = clipping.clip(z, self.clip_norm, self.norm)
        return noise.add(clipped, noise.unit_laplace(key, z.shape[0]), scale)

    def unscaled(self) -> LaplaceMechanism:
        """The same with b = 1."""
        return dataclasses.replace(self, scale=1.0)

    def sensitivity(self, relation: Relation) -> float:
        """2Ck in L1."""
        return 2.0 * self.clip_norm * require_relation(relation).l1_factor()

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """k Laplace releases with noise multiplier b/(2C) each: a tighter account than one with b/(2Ck)."""
        import dp_accounting

        one = dp_accounting.LaplaceDpEvent(self.scale / (2.0 * self.clip_norm))
        k = require_relation(relation).records_per_person
        return one if k == 1 else dp_accounting.SelfComposedDpEvent(one, k)


@dataclasses.dataclass(frozen=True)
class MetricMechanism:
    """Metric (d-)privacy: noise with density ∝ e^{−rate·‖x‖_p}, no clipping (Chatzikokolakis et al., PETS 2013).

    Its guarantee is its own and NOT ε-differential privacy: for any two latents z, z' the log-density ratio of the
    releases is at most rate·‖z − z'‖_p. Latents far apart are told apart; there is no finite sensitivity, and `event`
    says "not private". Proof: the triangle inequality. Entries are first limited to [−limit, limit], a public number;
    this map never increases a distance, so the guarantee stands, and it keeps the float32 grid near the noise fine.

    Attributes:
      rate: ε per unit of latent distance.
      metric: ``"l1"`` (Laplace on each coordinate) or ``"l2"`` (uniform direction, Gamma(D, 1/rate) length).
      limit: largest magnitude of an entry.
    """

    rate: float
    metric: clipping.Norm
    limit: float = 2.0**10
    name: ClassVar[str] = "metric"
    arithmetic: ClassVar[str] = "float32 noise, lowest bits rounded off; threefry-2x32 with 64-bit keys"

    def __post_init__(self) -> None:
        positive(self.rate, "rate")
        positive(self.limit, "limit")
        clipping.check_norm(self.metric)

    @property
    def norm(self) -> clipping.Norm:
        return self.metric

    @property
    def noise_scale(self) -> float:
        """1/rate, in units of latent distance."""
        return 1.0 / self.rate

    def __call__(self, key: Array, z: Array) -> Array:
        """One record: ``z[D] -> z̃[D]``, float32."""
        return self.at_scale(key, z, self.noise_scale)

    def at_scale(self, key: Array, z: Array, scale: Array | float) -> Array:
        """The same with 1/rate = ``scale``, see `Scalable`."""
        if z.ndim != 1:
            raise ValueError(f"a mechanism takes the latent of one record, shape [D]; got {z.shape}; use jax.vmap")
        bounded = jnp.clip(clipping.sanitise(z), -self.limit, self.limit)
        unit = noise.unit_laplace if self.metric == "l1" else noise.unit_metric_l2
        return noise.add(bounded, unit(key, z.shape[0]), scale)

    def unscaled(self) -> MetricMechanism:
        """The same with a rate of 1."""
        return dataclasses.replace(self, rate=1.0)

    def sensitivity(self, relation: Relation) -> float:
        """Infinite for every relation: nothing is clipped in the metric's sense."""
        require_relation(relation)
        return math.inf

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """Not ε-differentially private under any relation."""
        import dp_accounting

        require_relation(relation)
        return dp_accounting.NonPrivateDpEvent()

    def statement(self) -> str:
        """The guarantee in words, for the manifest."""
        return (
            f"metric privacy: {promised(self.rate)} nats per unit of {self.metric} distance between latents; not ε-DP"
        )
