"""From privacy events to ε: composition by dp-accounting (RDP and PLD), and by closed forms where they are exact.

Every method gives an upper bound on ε for the replace-one relation; the least of them is reported.

The replace-one trap. dp-accounting describes a Gaussian by σ over the add-or-remove-one sensitivity. Under its
REPLACE_ONE relation the PLD accountant doubles the sensitivity and refuses Laplace; the RDP accountant doubles nothing.
So events here carry their own adjacency:

- ``"replace-one"``: the event's noise multiplier already contains the replace-one sensitivity 2C (all events of
  `mechanism` and `discrete`); it is read under ADD_OR_REMOVE_ONE.
- ``"add-or-remove-one"``: an event in dp-accounting's own convention, multiplier over C (DP-SGD). It is converted: a
  plain Gaussian gets half the multiplier; a Poisson-sampled one goes through PLD's REPLACE_ONE.

Randomised response is always read under REPLACE_ONE; REPLACE_SPECIAL would understate it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import calibration
from diffusion_privacy.mechanisms.relation import Relation
from diffusion_privacy.rounding import of_pld
from diffusion_privacy.training.privacy import one_step

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from diffusion_privacy.mechanisms.condition import ConditionMechanism
    from diffusion_privacy.mechanisms.mechanism import Mechanism

Adjacency = Literal["replace-one", "add-or-remove-one"]
ADJACENCIES: tuple[Adjacency, ...] = ("replace-one", "add-or-remove-one")


@dataclasses.dataclass(frozen=True)
class Spend:
    """One event and the adjacency under which its parameters are written (see the module)."""

    event: DpEvent
    adjacency: Adjacency

    def __post_init__(self) -> None:
        if self.adjacency not in ADJACENCIES:
            raise InputError(f"adjacency: expected one of {ADJACENCIES}, got {self.adjacency!r}")


@dataclasses.dataclass(frozen=True)
class Account:
    """ε of a composition under replace-one.

    Attributes:
      epsilon: least of the upper bounds, in nats; ``inf`` when nothing is promised.
      delta: δ at which it holds; 0 for a pure guarantee.
      method: ``"exact-gaussian"``, ``"pure"``, ``"pld"``, ``"rdp"``, ``"basic"`` (sum of two parts at δ/2 each), or
        ``"none"``.
      bounds: every bound that could be computed, by method.
    """

    epsilon: float
    delta: float
    method: str
    bounds: dict[str, float]


def record_spend(mechanism: Mechanism, condition: ConditionMechanism, relation: Relation) -> Spend:
    """The event of releasing one record (for person level: of one person): condition, then latent, composed.

    Distinct records compose in parallel, so this is the event of the whole data set.
    """
    import dp_accounting

    return Spend(dp_accounting.ComposedDpEvent([condition.event(relation), mechanism.event(relation)]), "replace-one")


def leaves(event: DpEvent, count: int = 1) -> Iterator[tuple[DpEvent, int]]:
    """The elementary events of a composition with their multiplicities; no-ops are left out."""
    import dp_accounting

    if isinstance(event, dp_accounting.NoOpDpEvent):
        return
    if isinstance(event, dp_accounting.ComposedDpEvent):
        for part in event.events:
            yield from leaves(part, count)
    elif isinstance(event, dp_accounting.SelfComposedDpEvent):
        yield from leaves(event.event, count * event.count)
    else:
        yield event, count


def _normalised(spends: Sequence[Spend]) -> list[tuple[DpEvent, int, bool]]:
    """(event, count, sampled) with everything but Poisson-sampled Gaussians in the replace-one convention.

    Raises:
      InputError: an event for which no conversion from add-or-remove-one is known.
    """
    import dp_accounting

    parts: list[tuple[DpEvent, int, bool]] = []
    for spend in spends:
        for event, count in leaves(spend.event):
            if isinstance(event, dp_accounting.NonPrivateDpEvent) or spend.adjacency == "replace-one":
                parts.append((event, count, False))
            elif isinstance(event, dp_accounting.GaussianDpEvent):
                parts.append((dp_accounting.GaussianDpEvent(event.noise_multiplier / 2.0), count, False))
            elif isinstance(event, dp_accounting.LaplaceDpEvent):
                parts.append((dp_accounting.LaplaceDpEvent(event.noise_multiplier / 2.0), count, False))
            elif isinstance(event, dp_accounting.PoissonSampledDpEvent):
                parts.append((event, count, True))
            else:
                raise InputError(f"event {type(event).__name__}: no conversion from add-or-remove-one to replace-one")
    return parts


def _pure_epsilon(event: DpEvent) -> float | None:
    """ε of an (ε, 0)-private event, None for others."""
    import dp_accounting
    from dp_accounting.dp_event import DiscreteLaplaceDpEvent

    if isinstance(event, dp_accounting.LaplaceDpEvent):
        return 1.0 / event.noise_multiplier
    if isinstance(event, DiscreteLaplaceDpEvent):
        return event.noise_parameter * event.sensitivity
    if isinstance(event, dp_accounting.RandomizedResponseDpEvent):
        p, k = event.noise_parameter, event.num_buckets
        return math.log(k / p - k + 1.0) if p > 0.0 else math.inf
    return None


def _pld_epsilon(parts: list[tuple[DpEvent, int, bool]], delta: float, interval: float) -> float | None:
    """ε by composing privacy loss distributions, at δ less `of_pld`; None when an event has none (zCDP)."""
    import dp_accounting
    from dp_accounting import NeighboringRelation as Neighbouring
    from dp_accounting import pld
    from dp_accounting.dp_event import DiscreteLaplaceDpEvent

    step: dict[str, Any] = {"value_discretization_interval": interval}
    build = pld.privacy_loss_distribution
    total = build.identity(value_discretization_interval=interval)
    for event, count, sampled in parts:
        if isinstance(event, dp_accounting.GaussianDpEvent):
            one = build.from_gaussian_mechanism(event.noise_multiplier / math.sqrt(count), **step)
            total = total.compose(one)
            continue
        if isinstance(event, dp_accounting.LaplaceDpEvent):
            one = build.from_laplace_mechanism(event.noise_multiplier, **step)
        elif isinstance(event, DiscreteLaplaceDpEvent):
            one = build.from_discrete_laplace_mechanism(event.noise_parameter, event.sensitivity, **step)
        elif isinstance(event, dp_accounting.RandomizedResponseDpEvent):
            one = build.from_randomized_response(
                event.noise_parameter, event.num_buckets, neighboring_relation=Neighbouring.REPLACE_ONE, **step
            )
        elif (
            sampled
            and isinstance(event, dp_accounting.PoissonSampledDpEvent)
            and isinstance(event.event, dp_accounting.GaussianDpEvent)
        ):
            one = one_step(event.sampling_probability, event.event.noise_multiplier, "replace-one", interval)
        else:
            return None
        total = total.compose(one.self_compose(count) if count > 1 else one)
    sure = delta - of_pld(sum(count for _, count, _ in parts))
    return float(total.get_epsilon_for_delta(sure)) if sure > 0.0 else math.inf


def _rdp_epsilon(parts: list[tuple[DpEvent, int, bool]], delta: float) -> float | None:
    """ε by Rényi divergences; None when an event has none under this relation (Poisson sampling).

    One accountant under REPLACE_ONE serves all: it reads randomised response rightly and, unlike PLD, takes Gaussian,
    Laplace and zCDP events at their stated multiplier, which here contains 2C (a test holds dp-accounting to this). A
    discrete Laplace enters as the ε²/2-zCDP that every (ε, 0)-private event satisfies (Bun & Steinke 2016).
    """
    import dp_accounting
    from dp_accounting.dp_event import DiscreteLaplaceDpEvent

    accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    for event, count, sampled in parts:
        if isinstance(event, DiscreteLaplaceDpEvent):
            event = dp_accounting.ZCDpEvent(rho=0.5 * (event.noise_parameter * event.sensitivity) ** 2)
        if sampled or not accountant.supports(event):
            return None
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


def account(spends: Sequence[Spend], delta: float) -> Account:
    """ε at ``delta`` of all events together, on the same records, under replace-one.

    Args:
      spends: events with their adjacency; the order does not matter.
      delta: δ in [0, 1); at 0 only pure events have a finite ε.

    Raises:
      InputError: δ out of range, or an event that cannot be converted to replace-one.
    """
    import dp_accounting

    if not 0.0 <= delta < 1.0:
        raise InputError(f"delta: expected a number in [0, 1), got {delta!r}")
    parts = _normalised(spends)
    if not parts:
        return Account(0.0, 0.0, "pure", {"pure": 0.0})
    unknown = (dp_accounting.NonPrivateDpEvent, dp_accounting.UnsupportedDpEvent)
    if any(isinstance(event, unknown) for event, _, _ in parts):
        return Account(math.inf, delta, "none", {})
    bounds = _bounds(parts, delta)
    if not bounds:
        return Account(math.inf, delta, "none", {})
    method = min(bounds, key=lambda name: bounds[name])
    if bounds.get("pure", math.inf) <= 1.001 * bounds[method]:
        method = "pure"  # δ = 0 is worth more than the last thousandth of ε
    return Account(bounds[method], 0.0 if method == "pure" else delta, method, bounds)


def _bounds(parts: list[tuple[DpEvent, int, bool]], delta: float) -> dict[str, float]:
    """Upper bounds on ε of private events, by method; empty when none is known."""
    import dp_accounting

    bounds: dict[str, float] = {}
    pure = [(_pure_epsilon(event), count) for event, count, _ in parts]
    if all(eps is not None for eps, _ in pure):
        bounds["pure"] = math.fsum(eps * count for eps, count in pure if eps is not None)
    if delta > 0.0:
        gaussian = [(e, n) for e, n, _ in parts if isinstance(e, dp_accounting.GaussianDpEvent)]
        if len(gaussian) == len(parts):
            # Independent Gaussian releases are one with 1/s² = Σ 1/s_i² (Dong, Roth & Su 2022, corollary 3.3).
            precision = math.fsum(n / e.noise_multiplier**2 for e, n in gaussian)
            bounds["exact-gaussian"] = calibration.gaussian_epsilon(1.0 / math.sqrt(precision), delta)
        else:
            by_rdp = _rdp_epsilon(parts, delta)
            if by_rdp is not None:
                bounds["rdp"] = by_rdp
            # The discretisation errs upwards; 1e5 cells keep a large loss from filling the memory.
            by_pld = _pld_epsilon(parts, delta, interval=max(1e-4, min(bounds.values(), default=0.0) * 1e-5))
            if by_pld is not None:
                bounds["pld"] = by_pld
            sampled, others = [p for p in parts if p[2]], [p for p in parts if not p[2]]
            if not bounds and sampled and others:
                # Sampled events have no Rényi divergence here, discrete Gaussians no PLD: ε and δ of both add up.
                halves = [_bounds(half, delta / 2.0) for half in (sampled, others)]
                if all(halves):
                    bounds["basic"] = math.fsum(min(half.values()) for half in halves)
    return bounds


def zcdp_for(epsilon: float, delta: float) -> float:
    """Largest ρ for which ρ-zCDP implies (epsilon, delta)-privacy by dp-accounting's RDP conversion."""
    import dp_accounting

    def met(rho: float) -> bool:
        accountant = dp_accounting.rdp.RdpAccountant().compose(dp_accounting.ZCDpEvent(rho=rho))
        return bool(accountant.get_epsilon(delta) <= epsilon)

    high = epsilon
    low = high * 1e-6
    while not met(low):
        low *= 1e-3
        if low < 1e-30:
            raise InputError(f"epsilon: no discrete Gaussian reaches ({epsilon:g}, {delta:g})")
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if met(middle) else (low, middle)
    return low
