"""Stage `likelihood`: bits per dimension of training and held-out records under each model.

A gap between the two is the oldest sign of memorising: a model that has learnt the distribution gives both the same.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np

from diffusion_privacy.anonymity import lanes
from diffusion_privacy.data.records import Records
from diffusion_privacy.diffusion.likelihood import LikelihoodConfig, log_likelihood
from diffusion_privacy.settings import Study
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng
from diffusion_privacy.types import SDE, Array, PyTree, ScoreFn

_LOG = logging.getLogger(__name__)


def _likelihood_lanes(
    setting: tuple[SDE, LikelihoodConfig, int], operands: PyTree, batch: dict[str, Array]
) -> dict[str, Array]:
    sde, config, levels = setting
    keys = lanes.lane_keys(operands["key"], batch["uid"])
    found = log_likelihood(operands["score"], sde, batch["x"], keys, config, levels=levels)
    assert found.bits_per_dim is not None
    return {"bits": found.bits_per_dim, "probe_stderr": found.probe_stderr / np.log(2) / batch["x"][0].size}


def bits_per_dim(score: ScoreFn, sde: SDE, records: Records, config: LikelihoodConfig, key: Array) -> dict[str, Any]:
    """Mean bits per dimension of ``records`` with a 95 % normal interval over records; lower is a closer fit.

    Each record is dequantised once; the probes' error is part of the spread between records.
    """
    batch = {"x": np.asarray(records.image), "uid": np.asarray(records.index)}
    operands = {"key": key, "score": lanes.operand(score)}
    out = lanes.run(_likelihood_lanes, (sde, config, records.levels), operands, batch, chunk=64)
    bits = np.asarray(out["bits"], np.float64)
    if not np.all(np.isfinite(bits)):
        raise FloatingPointError("the likelihood of a record is not finite")
    half = 1.96 * float(np.std(bits, ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else None
    mean = float(np.mean(bits))
    return {
        "value": mean,
        "lower": None if half is None else mean - half,
        "upper": None if half is None else mean + half,
        "level": 0.95,
        "n": len(bits),
        "unit": "bits per dimension; lower is a closer fit",
        "mean_probe_stderr": float(np.mean(out["probe_stderr"])),
    }


def likelihood(study: Study, workdir: Workdir) -> None:
    """Writes ``likelihood.json``: for each model the private record, training records and held-out records."""
    count = study.audit.likelihood_records
    path = workdir.path("likelihood.json")
    if count == 0 or path.exists():
        return
    roles, sde = common.load_roles(study, workdir), common.make_sde(study)
    config = LikelihoodConfig(divergence="hutchinson", probes=8)
    measure = functools.partial(bits_per_dim, sde=sde, config=config, key=rng.stream(study.seed, "likelihood"))
    found: dict[str, Any] = {}
    with workdir.timed("likelihood"):
        for name in common.MODELS:
            score = common.load_score(study, workdir, name)
            train = roles.train[name]
            sets = {
                "private": train.take(np.flatnonzero(train.index == roles.private.index[0])),
                "training": train.take(np.arange(min(count, len(train)))),
                "held_out": roles.held_out.take(np.arange(min(count, len(roles.held_out)))),
            }
            found[name] = {role: measure(score, records=records) for role, records in sets.items()}
            _LOG.info("likelihood %s: %s", name, {k: round(v["value"], 3) for k, v in found[name].items()})
    workdir.write_json(path, found)
