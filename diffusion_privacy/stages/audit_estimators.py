"""The audit's further estimators: E4 from E2's own paths, and E3, E5 and E7 where the config asks for them.

They enter no verdict: its confidence is shared between E1 and E2 alone (`anonymity.verdict`).
"""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np

from diffusion_privacy.anonymity import change_of_variables, counterfactual, lower_bounds, splitting, subspace, summary
from diffusion_privacy.anonymity.paths import ChainPath
from diffusion_privacy.anonymity.subspace import SubspaceResult
from diffusion_privacy.anonymity.transport import Continuous, Discrete, Transport
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.errors import InputError
from diffusion_privacy.settings import Study
from diffusion_privacy.training import rng
from diffusion_privacy.types import PyTree, ScoreFn

_LOG = logging.getLogger(__name__)
_PILOT_LEVELS = 12
_PILOT_DRAWS = 32


def deterministic(study: Study, chain: Chain) -> Transport:
    """The sampler of E3 on the grid of ``chain``; clipping has no flow and is left out of it."""
    chain = dataclasses.replace(chain, kernel="ancestral")
    if study.audit.deterministic == "ddim":
        return Discrete(chain)
    divergence = "exact" if study.audit.deterministic == "ode_exact" else "hutchinson"
    return Continuous(dataclasses.replace(chain, clip_x0=False), divergence)


def check(study: Study, chain: Chain, shape: tuple[int, ...]) -> None:
    """Raises InputError where records of this shape are too large for what is asked; to be called before training."""
    if "change_of_variables" in study.audit.estimators:
        try:
            deterministic(study, chain).check(math.prod(shape))
        except InputError as error:
            raise InputError(f"config.audit.deterministic = {study.audit.deterministic!r}: {error}") from error


def _change_of_variables(
    study: Study,
    chain: Chain,
    score: ScoreFn,
    detect: PyTree,
    images: np.ndarray,
    uids: np.ndarray,
    name: str,
    chunk: int,
) -> list[summary.Row]:
    sampler, dim = deterministic(study, chain), math.prod(images.shape[1:])
    levels = np.unique(np.round(np.linspace(1, chain.steps, min(_PILOT_LEVELS, chain.steps))).astype(int))
    pilot, main = (rng.stream(study.seed, f"flow.{part}.{name}") for part in ("pilot", "draws"))
    curves = change_of_variables.h_curves(
        sampler, score, detect, images, levels, _PILOT_DRAWS, pilot, uids=uids, chunk=chunk
    )
    results = change_of_variables.estimate(
        sampler,
        score,
        detect,
        images,
        [subspace.design(curve, guidance=(1.0,)) for curve in curves],
        main,
        uids=uids,
        draws=study.audit.flow_draws,
        level=study.audit.level,
        chunk=max(1, chunk // (1 + sampler.tangents(dim))),
    )
    pilot_calls = int(sum(sampler.step_calls(j) for k in levels for j in range(1, k + 1))) * _PILOT_DRAWS
    found = []
    for result in results:
        estimate = result.estimate
        row = summary.row(dataclasses.replace(estimate, network_calls=estimate.network_calls + pilot_calls))
        found.append(dataclasses.replace(row, kind=dataclasses.replace(row.kind, name=f"E3 {sampler.title}")))
    return found


def further(
    study: Study,
    chain: Chain,
    score: ScoreFn,
    detect: PyTree,
    images: np.ndarray,
    uids: np.ndarray,
    e2: list[SubspaceResult],
    twin: ScoreFn | None,
    name: str,
    chunk: int,
) -> list[list[summary.Row]]:
    """Rows of every audited record, each at the study's level by itself.

    Args:
      study, chain, score, detect: what is audited.
      images: ``[R, H, W, C]`` the records; ``uids [R]`` their numbers.
      e2: E2's results, whose paths E4 reads.
      twin: the model without the private person's records, for E7.
      name: of the model.
      chunk: lanes a device handles at a time.
    """
    level, wanted = study.audit.level, study.audit.estimators
    found = [
        [summary.row(bound) for bound in lower_bounds.of_paths(result, study.audit.subspace_draws, level)]
        for result in e2
    ]
    more = []
    if "change_of_variables" in wanted:
        title = deterministic(study, chain).title
        _LOG.info("audit %s: %s, %d draws a record", name, title, study.audit.flow_draws)
        more.append(_change_of_variables(study, chain, score, detect, images, uids, name, chunk))
    if "splitting" in wanted:
        more.append(_splitting(study, chain, score, detect, images, uids, name, chunk))
    if "counterfactual" in wanted:
        assert twin is not None
        more.append(_counterfactual(study, chain, score, twin, detect, images, name, chunk))
    return [[*rows, *others] for rows, *others in zip(found, *more, strict=True)]


def _splitting(
    study: Study,
    chain: Chain,
    score: ScoreFn,
    detect: PyTree,
    images: np.ndarray,
    uids: np.ndarray,
    name: str,
    chunk: int,
) -> list[summary.Row]:
    """E5 of every record."""
    cost = study.audit.splitting
    _LOG.info("audit %s: splitting, %d replicas of %d particles a record", name, cost.replicas, cost.particles)
    results = splitting.estimate(
        ChainPath(chain),
        score,
        detect,
        images.shape[1:],
        len(images),
        rng.stream(study.seed, f"splitting.{name}"),
        settings=cost,
        uids=uids,
        level=study.audit.level,
        chunk=max(1, chunk // cost.particles),
    )
    return [summary.row(result.estimate) for result in results]


def _counterfactual(
    study: Study,
    chain: Chain,
    score: ScoreFn,
    twin: ScoreFn,
    detect: PyTree,
    images: np.ndarray,
    name: str,
    chunk: int,
) -> list[summary.Row]:
    """E7 of every record."""
    _LOG.info("audit %s: %d pairs with the model without the record", name, study.audit.pairs)
    pairs = counterfactual.counterfactual(
        chain,
        score,
        twin,
        detect,
        images.shape[1:],
        len(images),
        study.audit.pairs,
        rng.stream(study.seed, f"counterfactual.{name}"),
        level=study.audit.level,
        chunk=chunk,
    )
    return [summary.row(pair) for pair in pairs]
