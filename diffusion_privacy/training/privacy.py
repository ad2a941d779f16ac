"""Differentially private training (DP-SGD): its settings, and what a run of them costs.

Each step draws every record with probability q by itself (Poisson), clips each record's gradient to norm C, adds
Gaussian noise of standard deviation σ to the sum, and divides by the expected batch size (Abadi et al., arXiv
1607.00133, algorithm 1). What is done with the noised sums (Adam, averaging, checkpoints) is post-processing.

Two neighbouring relations, and a run states for which one its ε holds:

- ``add-or-remove-one``: what the DP-SGD literature quotes. One step is q N(C) + (1−q) N(0) against N(0).
- ``replace-one``: what the releases of this package state. One step is q N(C) + (1−q) N(0) against
  q N(−C) + (1−q) N(0), about twice the ε: the pair of Koskela, Jälkö & Honkela (AISTATS 2020) for substitution. Why
  it is the worst one: by advanced joint convexity (Balle, Barthe &
  Gaboardi, arXiv 1807.01647, theorem 2) the divergence is that of N(u) from a mixture of N(0) and N(v), ‖u‖, ‖v‖ <= C,
  hence of N(0) from a mixture with centres −u and v − u, and such a divergence is largest when the centres lie on one
  ray at their largest distances C and 2C (Choquette-Choo et al., arXiv 2310.15526, section 4). A test looks for a
  counterexample in the plane.

The number of records is public under both: q depends on it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from diffusion_privacy.errors import InputError
from diffusion_privacy.rounding import of_pld, promised

if TYPE_CHECKING:
    from dp_accounting import DpEvent

RELATIONS = ("replace-one", "add-or-remove-one")


@dataclasses.dataclass(frozen=True)
class Privacy:
    """How private a training run is; off by default. Give a target ε or a noise multiplier, not both.

    Attributes:
      epsilon: target ε of the whole run in nats, at ``delta`` under ``relation``; the least noise that meets it is
        calibrated. 0: see ``noise_multiplier``.
      noise_multiplier: σ/C, instead of a target. 0 and epsilon = 0: no privacy.
      delta: δ of the target and of the ε that is logged; in (0, 1), below 1/n.
      clip_norm: C, the largest L2 norm of one record's gradient.
      relation: one of `RELATIONS`, for ε as target and as metric.
      augmentations: K, draws of the task's own randomness (noise level, dequantisation) over which a record's loss is
        averaged before its gradient is clipped (De et al., arXiv 2204.13650; Dockhorn et al., arXiv 2210.09929). Costs
        K times the computation and no privacy.
      micro_batch: records whose gradients a device holds at once; changes memory and speed, not the numbers.

    Raises:
      InputError: a field is out of range.
    """

    epsilon: float = 0.0
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    clip_norm: float = 1.0
    relation: str = "replace-one"
    augmentations: int = 1
    micro_batch: int = 32

    def __post_init__(self) -> None:
        for name in ("epsilon", "noise_multiplier"):
            value = getattr(self, name)
            _need(math.isfinite(value) and value >= 0, name, "a finite number, at least 0", value)
        if self.epsilon > 0 and self.noise_multiplier > 0:
            raise InputError("training.privacy: expected epsilon or noise_multiplier, not both")
        _need(0 < self.delta < 1, "delta", "a number inside (0, 1)", self.delta)
        # Below, squares of float32 gradients vanish, and nothing would be clipped.
        _need(1e-12 <= self.clip_norm < 1e6, "clip_norm", "a number in [1e-12, 1e6)", self.clip_norm)
        _need(self.relation in RELATIONS, "relation", f"one of {', '.join(RELATIONS)}", self.relation)
        for name in ("augmentations", "micro_batch"):
            _need(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))

    @property
    def on(self) -> bool:
        """Whether training is private at all."""
        return self.epsilon > 0 or self.noise_multiplier > 0


def _need(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise InputError(f"training.privacy.{name}: expected {expected}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers that decide what a run costs; stored in its checkpoints.

    Attributes:
      records: n, public.
      sampling_probability: q of each record in each step.
      noise_multiplier: σ/C, σ being the standard deviation of the noise on the sum of clipped gradients.
      clip_norm: C.
      steps: T of the whole run.
      delta, relation: see `Privacy`.
    """

    records: int
    sampling_probability: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    delta: float
    relation: str

    def event(self, steps: int | None = None) -> DpEvent:
        """dp-accounting's event of the first ``steps`` steps (default: of all), in its add-or-remove-one convention.

        The multiplier is over C, so it must be read as ``add-or-remove-one`` (`mechanisms.accounting.Spend`), which
        converts it where replace-one is asked for. Never hand it over as ``replace-one``.
        """
        import dp_accounting

        one = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_probability < 1:
            one = dp_accounting.PoissonSampledDpEvent(self.sampling_probability, one)
        return dp_accounting.SelfComposedDpEvent(one, self.steps if steps is None else steps)

    def epsilon(self, steps: int | None = None) -> float:
        """ε in nats at ``delta`` under ``relation`` after so many steps (default: all)."""
        count = self.steps if steps is None else steps
        return pld_epsilon(self.sampling_probability, self.noise_multiplier, count, self.delta, self.relation)

    def describe(self, steps: int | None = None) -> str:
        """ε, δ and relation in words, e.g. for a line of progress."""
        return f"ε = {promised(self.epsilon(steps), 4)} at δ = {promised(self.delta)} ({self.relation})"

    def to_json(self) -> dict[str, Any]:
        """Flat JSON; `from_json` reads it back exactly."""
        return dataclasses.asdict(self)


def from_json(fields: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.to_json` wrote; other fields are left aside.

    Raises:
      InputError: a field is missing.
    """
    names = [f.name for f in dataclasses.fields(Plan)]
    missing = [name for name in names if name not in fields]
    if missing:
        raise InputError(f"checkpoint: its privacy record lacks {', '.join(missing)}; use another workdir")
    return Plan(**{name: fields[name] for name in names})


def make_plan(privacy: Privacy, *, records: int, batch_size: int, steps: int) -> Plan:
    """The plan of a run whose batches hold ``batch_size`` of ``records`` records on average.

    Raises:
      InputError: privacy is off, the batch is larger than the data set, or δ >= 1/n.
    """
    if not privacy.on:
        raise InputError("training.privacy: expected epsilon > 0 or noise_multiplier > 0")
    if not 1 <= batch_size <= records:
        raise InputError(f"training.batch_size: expected at most the {records} records, got {batch_size}")
    if privacy.delta >= 1.0 / records:
        raise InputError(
            f"training.privacy.delta: expected less than 1/n = {1.0 / records:.3g} for n = {records} records, "
            f"got {privacy.delta!r}"
        )
    q = batch_size / records
    sigma = privacy.noise_multiplier
    if not sigma:
        sigma = calibrate(privacy.epsilon, privacy.delta, q, steps, privacy.relation)
    return Plan(records, q, sigma, privacy.clip_norm, steps, privacy.delta, privacy.relation)


_COARSE = 10.0
"""Cells this much wider find the neighbourhood of a noise multiplier in a tenth of the time."""


def _interval(noise_multiplier: float) -> float:
    # The loss of one step spreads over about (2/σ)²; 1e5 cells keep little noise from filling the memory.
    return max(1e-4, 1e-5 * (2.0 / noise_multiplier) ** 2)


@functools.lru_cache(maxsize=8)
def one_step(q: float, noise_multiplier: float, relation: str, interval: float) -> Any:
    """dp-accounting's privacy loss distribution of one Poisson-sampled Gaussian step, in cells of ``interval`` nats.

    The discretisation errs upwards. Kept, since a plan and a ledger ask for the same one.
    """
    from dp_accounting import NeighboringRelation, pld

    neighbours = {
        "replace-one": NeighboringRelation.REPLACE_ONE,
        "add-or-remove-one": NeighboringRelation.ADD_OR_REMOVE_ONE,
    }
    return pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=q,
        neighboring_relation=neighbours[relation],
        value_discretization_interval=interval,
    )


@functools.lru_cache(maxsize=256)
def pld_epsilon(q: float, noise_multiplier: float, steps: int, delta: float, relation: str) -> float:
    """ε of ``steps`` steps by composing privacy loss distributions, rounded upwards by the discretisation.

    It is read at δ less `rounding.of_pld`; infinite where nothing is left of δ.
    """
    if relation not in RELATIONS:
        raise InputError(f"training.privacy.relation: expected one of {', '.join(RELATIONS)}, got {relation!r}")
    return _composed_epsilon(q, noise_multiplier, steps, delta, relation, 1.0)


def _composed_epsilon(q: float, sigma: float, steps: int, delta: float, relation: str, widening: float) -> float:
    if steps == 0:
        return 0.0
    sure = delta - of_pld(steps)
    if sure <= 0.0:
        return math.inf
    one = one_step(q, sigma, relation, widening * _interval(sigma))
    return float(one.self_compose(steps).get_epsilon_for_delta(sure))


@functools.lru_cache(maxsize=16)
def calibrate(epsilon: float, delta: float, q: float, steps: int, relation: str) -> float:
    """Least σ/C, to one part in a thousand and never below it, at which the whole run is (epsilon, delta)-private.

    Raises:
      InputError: no multiplier up to 10,000 does.
    """
    from scipy import optimize

    def excess(log_sigma: float, widening: float) -> float:
        found = _composed_epsilon(q, math.exp(log_sigma), steps, delta, relation, widening)
        return math.log(min(max(found, 1e-12), 1e12) / epsilon)

    def coarse(log_sigma: float) -> float:
        return excess(log_sigma, _COARSE)

    low, high = math.log(0.5), math.log(1.0)
    while coarse(high) > 0:
        low, high = high, high + math.log(2.0)
        if high > math.log(1e4):
            raise InputError(f"training.privacy.epsilon: {epsilon!r} is out of reach at δ = {delta:g}; expected more")
    while coarse(low) <= 0 and low > math.log(1e-2):
        low, high = low - math.log(2.0), low
    place = low if coarse(low) <= 0 else optimize.brentq(coarse, low, high, xtol=1e-4)
    return math.exp(_refined(lambda log_sigma: excess(log_sigma, 1.0), place, coarse(place - 0.02) - coarse(place)))


def _refined(excess: Callable[[float], float], place: float, fall: float) -> float:
    """The least place, to 1e-3 and never below it, at which ``excess``, which falls, is 0 or less.

    Args:
      excess: costly.
      place: close to it.
      fall: of excess, over .02 before the place.
    """
    slope = max(fall, 1e-6) / 0.02
    fails, holds = -math.inf, math.inf
    while True:
        found = excess(place)
        if found <= 0:
            holds = place
            if found >= -5e-4 * slope or place <= math.log(1e-2):
                return place
        else:
            fails = place
        if holds - fails <= 1e-3:
            return holds
        # Newton's step, aimed a little above the root, so that what it finds may be returned.
        step = min(max(found / slope + 2e-4, -0.1), 0.1)
        inside = fails < place + step < holds
        place = place + step if inside else (fails + holds) / 2
