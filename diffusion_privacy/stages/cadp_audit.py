"""Stage `audit` of a CADP study: attacks on the mechanism, on the releases and on the flow."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity.intervals import rate
from diffusion_privacy.audits import membership, worst_case
from diffusion_privacy.audits.linkage import linkage, p_by_guessing
from diffusion_privacy.audits.release import audit_release
from diffusion_privacy.data.records import Records, equal_none, random_order
from diffusion_privacy.data.table_rows import Rows, together
from diffusion_privacy.errors import InputError
from diffusion_privacy.flows.objective import bits_per_dim
from diffusion_privacy.mechanisms.calibration import gaussian_epsilon
from diffusion_privacy.mechanisms.discrete import DiscreteGaussian, DiscreteLaplace
from diffusion_privacy.mechanisms.mechanism import (
    GaussianMechanism,
    LaplaceMechanism,
    Mechanism,
    Scalable,
    many_at_scale,
)
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD
from diffusion_privacy.mechanisms.release import noised
from diffusion_privacy.settings_cadp import PrivateStudy
from diffusion_privacy.stages import cadp_study as common
from diffusion_privacy.stages.cadp_study import Parts, R, TrainedFlow
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng
from diffusion_privacy.types import Array

KS = (1, 10)
_MEMBERSHIP = 0x4D42
"""Keeps the draw of who is attacked apart from every other use of the seed."""

_Scored = tuple[Any, np.ndarray]
"""Images or rows, and the log-likelihood of each."""


# --- the mechanism ----------------------------------------------------------------------------------------------------


def _attackable(mechanism: Mechanism) -> GaussianMechanism | LaplaceMechanism:
    """The mechanism itself, or for exact integer noise, which no compiled program draws, its continuous counterpart."""
    if isinstance(mechanism, GaussianMechanism | LaplaceMechanism):
        return mechanism
    if isinstance(mechanism, DiscreteGaussian):
        return GaussianMechanism(mechanism.clip_norm, mechanism.noise_scale)
    if isinstance(mechanism, DiscreteLaplace):
        return LaplaceMechanism(mechanism.clip_norm, mechanism.noise_scale)
    raise InputError(f"audit: expected a mechanism with a worst-case pair, got {mechanism!r}")


@functools.lru_cache
def _at_scale(mechanism: Scalable) -> Callable[[Array, Array, Array], Array]:
    """``(scale, keys, z) -> z̃``: one function object a mechanism, so that every ε runs the same compiled program."""
    return functools.partial(many_at_scale, mechanism)


def epsilon_bound(settings: PrivateStudy, epsilon: float, dims: int, records: int) -> dict[str, Any]:
    """`cadp_schema.Bound`: lower confidence bound on the latent step's ε, through what `_attackable` gives."""
    attack, delta = settings.attack, settings.release.delta
    mechanism = _attackable(common.make_mechanism(settings, epsilon, dims, records))
    separation = mechanism.sensitivity(REPLACE_RECORD) / mechanism.noise_scale
    if mechanism.norm == "l2":
        # What the pair can show at all: less than the claim at person level, or where a discrete law rounds up.
        tails, shown = "gaussian", gaussian_epsilon(1.0 / separation, delta)
    else:
        tails, shown, delta = "laplace", separation, 0.0
    most, confidence = attack.trials, attack.confidence
    found = worst_case.worst_case_bound(
        jax.tree_util.Partial(_at_scale(mechanism.unscaled()), mechanism.noise_scale),
        rng.stream(settings.seed, "epsilon", int(1000 * epsilon)),
        dim=attack.trial_dim,
        clip_norm=mechanism.clip_norm,
        delta=delta,
        trials=worst_case.planned_trials(
            separation, min(epsilon, shown), delta, tails, most=most, share=attack.tightness, confidence=confidence
        ),
        tails=tails,
        confidence=confidence,
    )
    return {
        "claimed": epsilon,
        "lower": found.lower,
        "ceiling": found.ceiling,
        "confidence": found.confidence,
        "trials": found.trials,
        "holds": found.lower <= epsilon,
        "decisive": found.ceiling > epsilon,
        "attacked": mechanism.name,
    }


def release_faults(settings: PrivateStudy, epsilon: float, dims: int, records: int) -> dict[str, Any]:
    """Faults between records and between runs of a whole release, with its own fresh noise."""
    mechanism = common.make_mechanism(settings, epsilon, dims, records)
    found = audit_release(
        lambda z: noised(mechanism, jnp.asarray(z)),
        dim=max(dims, 64),
        clip_norm=common.clip_norm(settings, dims),
        epsilon=epsilon,
        delta=settings.release.delta,
        records=64,
        repeats=settings.attack.release_repeats,
        confidence=settings.attack.confidence,
    )
    return {"epsilon": epsilon, "passed": found.passed, "faults": dict(found.faults)}


# --- linkage ----------------------------------------------------------------------------------------------------------


def _groups(labels: np.ndarray, candidates: np.ndarray, by_class: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """(released rows, gallery rows) that are held against each other."""
    if not by_class:
        return [(np.arange(len(labels)), np.arange(len(candidates)))]
    return [(np.flatnonzero(labels == c), np.flatnonzero(candidates == c)) for c in np.unique(labels)]


def by_class(settings: PrivateStudy, parts: Parts[Any]) -> bool:
    """Whether the condition is published, so that an attacker looks among candidates that share it."""
    several = parts.private.num_classes > 1 or settings.flow.condition == "attributes"
    return bool(several) and settings.release.label_epsilon == 0


def latents(flow: TrainedFlow, images: np.ndarray, told: np.ndarray, key: Array, what: str) -> np.ndarray:
    """``z[N, D]`` of ``what`` as the attacker holds it, given the condition that was told.

    Raises:
      FloatingPointError: a latent is not finite. Put down as 0 it would be nobody's, and the record would seem
        unlinkable.
    """
    z, _ = flow.encode(images, told, key)
    bad = np.flatnonzero(~np.isfinite(z).all(axis=1))
    if bad.size:
        raise FloatingPointError(
            f"linkage, {what}: the flow gives record {bad[0]} a latent that is not finite ({bad.size} such)"
        )
    return z


def link(
    released_z: np.ndarray,
    labels: np.ndarray,
    gallery_z: np.ndarray,
    classes: np.ndarray,
    level: float,
    by_class: bool,
    seed: int = 0,
) -> dict[str, Any]:
    """Top-1 and rank-10 rates of the attack; record i of the release comes from candidate i.

    Where the class is public the attacker looks among candidates of that class only, which is harder on the release
    than the whole gallery: the class itself gives nothing away then, and chance is k over the size of the class.
    ``seed`` breaks ties, by itself in each class.
    """
    hits, chance = dict.fromkeys(KS, 0), dict.fromkeys(KS, 0.0)
    similarity, n = 0.0, len(labels)
    for number, (rows, candidates) in enumerate(_groups(labels, classes, by_class)):
        ks = [min(k, len(candidates)) for k in KS]
        # An attacker without the right candidate has nothing to find: truth is always in the gallery here.
        truth = np.searchsorted(candidates, rows)
        # Ties are broken anew in each class: broken alike, the ranks of a release of constants would repeat, class by
        # class, and hits would come in bunches that the binomial law of the p-value does not know.
        found = linkage(released_z[rows], gallery_z[candidates], truth, sorted(set(ks)), level, seed=(seed, number))
        similarity += found.similarity * len(rows) / n
        for k, cut in zip(KS, ks, strict=True):
            hits[k] += found.rates[cut].hits
            chance[k] += found.chance[cut] * len(rows) / n
    entry: dict[str, Any] = {"similarity": similarity}
    for k in KS:
        measured = dataclasses.asdict(rate(hits[k], n, level))
        p_value = p_by_guessing(hits[k], n, chance[k])
        entry[f"rank{k}"] = {**measured, "value": hits[k] / n, "chance": chance[k], "p_value": p_value}
    return entry


def alike(condition: np.ndarray) -> np.ndarray:
    """Equal for records of equal condition, ``int [N] or [N, A] -> [N]``: the class, or all attributes as a text."""
    if condition.ndim == 1:
        return condition
    return np.asarray(["".join(map(str, row)) for row in condition.tolist()])


def first(records: R, count: int) -> R:
    """The first ``count`` records, or all of them: with 0, or where there are no more."""
    return records.take(np.arange(count)) if 0 < count < len(records) else records


def sampled(records: R, count: int, seed: int) -> R:
    """``count`` records drawn without replacement as a function of the seed, or all of them as in `first`.

    Shares keep the order of the source, which may hold its records class by class: the first of a small share are of
    other classes than the first of a large one, and the two would differ by that.
    """
    if not 0 < count < len(records):
        return records
    return records.take(random_order(len(records), seed, _MEMBERSHIP)[:count])


def _linkage(settings: PrivateStudy, workdir: Workdir, parts: Parts[Any], flow: TrainedFlow) -> list[dict[str, Any]]:
    """One entry a set: the releases, sets noised less than one would dare (never published), and two yardsticks."""
    everyone, level, seed = parts.private, settings.attack.level, settings.seed
    private = first(everyone, settings.attack.records)
    within = by_class(settings, parts)
    attacker, given = flow.attacker(), flow.given(private)
    gallery = latents(attacker, private.image, given, rng.stream(seed, "gallery"), "originals")

    def entry(
        name: str, kind: str, epsilon: float | None, images: np.ndarray, told: np.ndarray = given
    ) -> dict[str, Any]:
        z = latents(attacker, images, told, rng.stream(seed, "attack"), name)
        found = link(z, alike(told), gallery, alike(given), level, within, seed)
        return {"name": name, "kind": kind, "epsilon": epsilon, **found}

    entries = []
    for e in settings.release.epsilons:
        released = first(common.load_release(workdir, e, everyone, common.target_of(settings)).records, len(private))
        entries.append(entry(f"released {e:g}", "released", e, released.image, flow.given(released)))
    noisy = settings.attack.study_epsilons
    if noisy:
        study = common.study_images(settings, flow, private, noisy, rng.stream(seed, "study"))
        entries += [entry(f"study {e:g}", "study", e, x) for e, x in zip(noisy, study, strict=True)]
    entries.append(entry("control", "control", None, flow.sample(given, rng.stream(seed, "control"))))
    entries.append(entry("no noise", "no noise", None, private.image))
    return entries


# --- the flow ---------------------------------------------------------------------------------------------------------


def _flow(settings: PrivateStudy, parts: Parts[Any], flow: TrainedFlow) -> dict[str, Any]:
    """`cadp_schema.FlowFacts`: fit on members and others, what an attacker makes of it, how well it inverts itself."""
    learnt = parts.public if settings.flow.trained_on == "public" else parts.private
    strangers = common.never_seen(parts.test, learnt)
    members, others = (sampled(side, settings.attack.records, settings.seed) for side in (learnt, strangers))
    key = rng.stream(settings.seed, "membership")
    _, member_logp = flow.encode(members.image, flow.given(members), jax.random.fold_in(key, 0))
    _, other_logp = flow.encode(others.image, flow.given(others), jax.random.fold_in(key, 1))
    sides = (members, member_logp), (others, other_logp)
    dims = flow.model.dims
    spread = decoded_spread(settings, dims, len(parts.private))
    latent_error, record_error = inversion_errors(flow, others, key, spread)
    return {
        "bits_per_dim": {
            "trained_on": float(np.mean(bits_per_dim(jnp.asarray(member_logp), dims))),
            "held_out": float(np.mean(bits_per_dim(jnp.asarray(other_logp), dims))),
        },
        "grey_levels": members.levels if isinstance(members, Records) else None,
        "membership": _membership(settings, *sides, np.ones(len(others), bool)),
        "members": len(members),
        "others": len(others),
        "left_out": len(parts.test) - len(strangers),
        **(_same(settings, learnt, *sides) if isinstance(learnt, Rows) else {}),
        "inversion_error": latent_error,
        "record_error": record_error,
    }


def same_as(others: Rows, members: Rows) -> np.ndarray:
    """Which of ``others[M]`` a flow cannot tell from one of ``members``, bool ``[M]``: equal vectors and columns apart.

    Numbers beyond a column's public range are moved to its end, so that such rows may differ in the table.
    """
    seen = [np.column_stack([rows.image.astype(np.float64), rows.label]) for rows in (others, members)]
    return ~equal_none(*seen)


def dealt_together(records: Records | Rows) -> np.ndarray:
    """int ``[N]``, equal for what `cadp_study.load_parts` deals to a share together: a person's records, equal rows."""
    if isinstance(records, Records):
        return records.identity
    return together(np.unique(np.array(common.hashes(records)), return_inverse=True)[1], records.identity)


def _same(settings: PrivateStudy, learnt: Rows, members: _Scored, others: _Scored) -> dict[str, Any]:
    """Of `cadp_schema.FlowFacts`: rows of the others that are the `same_as` learnt ones, and the AUC without them."""
    same = same_as(others[0], learnt)
    told = same.any() and np.sum(~same) >= 2
    return {
        "same": int(same.sum()),
        "membership_without_same": _membership(settings, members, others, ~same) if told else None,
    }


def _membership(settings: PrivateStudy, members: _Scored, others: _Scored, which: np.ndarray) -> dict[str, Any]:
    """AUC of the log-likelihoods, members against those of the others ``which[M]`` says.

    What was dealt to a share together is one draw: ten equal rows that score high say no more than one does.
    """
    groups = dealt_together(members[0]), dealt_together(others[0])[which]
    level = settings.attack.level
    found = membership.auc(members[1], others[1][which], level, groups=groups)
    return {"value": found.value, "lower": found.lower, "upper": found.upper, "level": level}


def decoded_spread(settings: PrivateStudy, dims: int, records: int) -> float:
    """Largest standard deviation of the latents that the decoder gets: 1 where they are matched to the prior."""
    release = settings.release
    if release.prior_matched:
        return 1.0
    scale = common.make_mechanism(settings, release.epsilons[0], dims, records).noise_scale
    return math.sqrt(1.0 + (2.0 if release.mechanism.endswith("laplace") else 1.0) * scale**2)


def inversion_errors(flow: TrainedFlow, records: Records | Rows, key: jax.Array, spread: float) -> tuple[float, float]:
    """max |f(f⁻¹(z'; c); c) − z'| over z' ~ N(0, spread²·I), and max |f⁻¹(f(y; c); c) − y| over records, in float32.

    y are the records as the flow takes them, dequantised and mapped; z' what the decoder of a release gets.
    """
    given = flow.condition(flow.given(records))
    cond = None if given is None else jnp.asarray(given)
    keys = jax.random.split(key, (2, len(records)))
    z = spread * jax.vmap(lambda k: jax.random.normal(k, (flow.model.dims,)))(keys[0])
    y, _ = flow.model.preprocess.forward(
        jax.vmap(flow.model.preprocess.dequantise)(keys[1], jnp.asarray(records.image))
    )

    @jax.jit
    def there_and_back(params: Any, z: Array, y: Array, cond: Array | None) -> tuple[Array, Array]:
        forward, inverse = flow.model.bijection.forward, flow.model.bijection.inverse
        again = forward(params, inverse(params, z, cond)[0], cond)[0]
        back = inverse(params, forward(params, y, cond)[0], cond)[0]
        return jnp.max(jnp.abs(again - z)), jnp.max(jnp.abs(back - y))

    latent, record = there_and_back(flow.params, z, y, cond)
    return float(latent), float(record)


def audit(settings: PrivateStudy, workdir: Workdir) -> None:
    """Attacks everything that the study made; writes audit.json."""
    path = workdir.root / "audit.json"
    if path.exists():
        return
    parts = common.load_parts(settings, workdir)
    flow = common.load_flow(settings, workdir, parts.private)
    dims, count = flow.model.dims, len(parts.private)
    with workdir.timed("audit linkage"):
        links = _linkage(settings, workdir, parts, flow)
        of_flow = _flow(settings, parts, flow)
    with workdir.timed("audit mechanism"):
        bounds = [epsilon_bound(settings, e, dims, count) for e in settings.release.epsilons]
        faults = (
            release_faults(settings, settings.release.epsilons[0], dims, count)
            if settings.attack.release_repeats
            else None
        )
    result = {"by_class": by_class(settings, parts), "linkage": links, "flow": of_flow}
    workdir.write_json(path, {**result, "epsilon_bounds": bounds, "release_faults": faults})
