"""The audit's further estimators: E4 from E2's own paths, and E3, E5 and E7 where the config asks for them.

They enter no verdict: its confidence is shared between E1 and E2 alone (`anonymity.verdict`).
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from diffusion_privacy.anonymity import change_of_variables, counterfactual, lower_bounds, splitting, subspace, summary
from diffusion_privacy.anonymity.counterfactual import Counterfactual
from diffusion_privacy.anonymity.paths import ChainPath
from diffusion_privacy.anonymity.subspace import SubspaceResult
from diffusion_privacy.anonymity.transport import Continuous
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.settings import Study
from diffusion_privacy.training import rng
from diffusion_privacy.types import Estimate, PyTree, ScoreFn

_LOG = logging.getLogger(__name__)
_PILOT_LEVELS = 12
_PILOT_DRAWS = 32


def _flow(
    study: Study,
    chain: Chain,
    score: ScoreFn,
    detect: PyTree,
    images: np.ndarray,
    uids: np.ndarray,
    name: str,
    chunk: int,
) -> list[Estimate]:
    """E3 of the probability flow on the sampler's own grid; clipping has no flow and is left out."""
    flow = Continuous(dataclasses.replace(chain, kernel="ancestral", clip_x0=False))
    levels = np.unique(np.round(np.linspace(1, chain.steps, min(_PILOT_LEVELS, chain.steps))).astype(int))
    pilot, main = (rng.stream(study.seed, f"flow.{part}.{name}") for part in ("pilot", "draws"))
    # Tangents of all probes are carried at once.
    width = max(1, chunk // (1 + flow.probes))
    curves = change_of_variables.h_curves(
        flow, score, detect, images, levels, _PILOT_DRAWS, pilot, uids=uids, chunk=chunk
    )
    results = change_of_variables.estimate(
        flow,
        score,
        detect,
        images,
        [subspace.design(curve, guidance=(1.0,)) for curve in curves],
        main,
        uids=uids,
        draws=study.audit.flow_draws,
        level=study.audit.level,
        chunk=width,
    )
    pilot_calls = int(sum(flow.step_calls(j) for k in levels for j in range(1, k + 1))) * _PILOT_DRAWS
    return [dataclasses.replace(r.estimate, network_calls=r.estimate.network_calls + pilot_calls) for r in results]


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
    found: list[list[Estimate | Counterfactual]] = [
        [*lower_bounds.of_paths(result, study.audit.subspace_draws, level)] for result in e2
    ]
    if "change_of_variables" in wanted:
        _LOG.info("audit %s: the probability flow, %d draws a record", name, study.audit.flow_draws)
        for rows, estimate in zip(found, _flow(study, chain, score, detect, images, uids, name, chunk), strict=True):
            rows.append(estimate)
    if "splitting" in wanted:
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
            level=level,
            chunk=max(1, chunk // cost.particles),
        )
        for rows, result in zip(found, results, strict=True):
            rows.append(result.estimate)
    if "counterfactual" in wanted:
        assert twin is not None
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
            level=level,
            chunk=chunk,
        )
        for rows, pair in zip(found, pairs, strict=True):
            rows.append(pair)
    return [[summary.row(estimate) for estimate in rows] for rows in found]
