"""The project's own audit of a memoriser that a U-Net computes along with: screening, bisection, halving and E2.

The score is that of the atoms in closed form, so that what is true is known, plus the U-Net's times a weight that is an
argument of the compiled program: so small that no number changes, and unknown to the compiler, which has to compute the
network all the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from benchmarks.adaptive_audit import atom_score, nearest
from benchmarks.audit_setting import Setting, Statement, Truth, grid_brackets
from benchmarks.pairs import UNetPair, random_params
from diffusion_privacy.anonymity import adaptive, halving, intervals, lanes, screening, subspace, tprime
from diffusion_privacy.anonymity.adaptive import Rule
from diffusion_privacy.anonymity.halving import Ladder
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import DDPM
from diffusion_privacy.tasks import ScoreTask
from diffusion_privacy.types import Array

WEIGHT = 1e-30
"""Of the network in the score: below the last bit of what it is added to."""
PATHS = 512
FINALISTS = 8
TARGETS = (2.0, 0.9, 0.3)
"""Of `subspace.design`. No h reaches 2: one component is guided down to the lowest level. With the default, weights
have a heavier tail for this memoriser, and one record in four takes several times as many paths."""
_REPLICAS = 32
_KEY = 0


def chain(setting: Setting) -> Chain:
    """The sampler of both sides: diffusers' DDPM scheduler with trailing timesteps visits the same levels."""
    return Chain(DDPM(setting.train_steps), setting.steps)


@dataclasses.dataclass(frozen=True)
class _Planted:
    """The sum of both scores."""

    sde: DDPM

    def __call__(self, atoms: Array, network: Partial | None, weight: Array, x: Array, t: Array) -> Array:
        planted = atom_score(atoms, x, t, self.sde)
        return planted if network is None else planted + weight * network(x, t)


def score(setting: Setting, pair: UNetPair | None) -> Partial:
    """With ``pair`` None, the memoriser alone."""
    points, atoms = setting.points()
    held = jnp.asarray(points[atoms].reshape(len(atoms), -1))
    sde, network = DDPM(setting.train_steps), None
    if pair is not None:
        network = ScoreTask(pair.network(), sde, 1).score(random_params(pair.network(), pair.shape))
    return Partial(_Planted(sde), held, network, jnp.float32(WEIGHT))


def detector(setting: Setting) -> Partial:
    """Of all images, audited or not."""
    return Partial(nearest, jnp.asarray(setting.points()[0].reshape(-1, int(np.prod(setting.shape)))))


def _among(rows: Array, detect: Partial, x: Array, record: Array) -> Array:
    return detect(x, rows[record])


@dataclasses.dataclass(frozen=True)
class Audit:
    """Everything that a user would wait for, as one call; the programs are compiled by the first.

    Attributes:
      setting: what is audited.
      score: of `score`.
      width: of the bracket of t', in levels.
      chunk: lanes a device takes at a time.
      rates: whether q is estimated too, or t' alone is bracketed.
    """

    setting: Setting
    score: Partial
    width: int
    chunk: int
    rates: bool = True

    def __call__(self) -> tuple[Statement, dict[str, Any]]:
        """(the statement, network calls and paths of its parts)."""
        setting, key, run = self.setting, jax.random.key(_KEY), chain(self.setting)
        images, detect, order = setting.points()[0][: setting.records], detector(setting), np.arange(setting.records)
        calls: dict[str, Any] = {}
        if self.rates and setting.records > 1:
            screened = screening.screen(run, self.score, images, key, chunk=self.chunk)
            order, calls["screening"] = screened.ranking, screened.network_calls
        rule = Rule(setting.gamma, setting.gamma_upper, setting.error, width=self.width, simultaneous=False)
        found = adaptive.intervals_of(run, self.score, detect, images, key, rule, chunk=self.chunk)
        calls["bisection"], calls["bisection_lanes"] = found.network_calls, [int(found.draws.sum()), found.lanes_run]
        lower = np.array([i.lower_level or 0 for i in found.intervals])
        upper = np.array([i.upper_level or setting.steps + 1 for i in found.intervals])
        back = order[lower[order] > 0]
        rates: dict[int, tuple[float, float]] = {}
        if self.rates and back.size:
            # What does not come back even from the lowest levels gets no paths; the rest is ranked by screening.
            ladder = Ladder(FINALISTS, final_draws=PATHS, level=1 - setting.error, simultaneous=False)
            mixtures = [subspace.design(found.by_level(r), targets=TARGETS) for r in back]
            among = Partial(_among, jnp.asarray(back), lanes.operand(detect))
            final = halving.successive_halving(
                run, self.score, among, images[back], mixtures, key, ladder, uids=back, chunk=self.chunk
            )
            calls["halving"] = final.network_calls
            calls["paths"] = {int(back[f]): r.estimate.n for f, r in zip(final.finalists, final.results, strict=True)}
            for f, result in zip(final.finalists, final.results, strict=True):
                rates[int(back[f])] = (result.estimate.lower, result.estimate.upper)
        return Statement(lower, upper, rates), calls


def truth(setting: Setting) -> Truth:
    """Of the atoms, by 32 runs of the grid on one of them with the memoriser alone; q is known without."""
    run, levels = chain(setting), np.arange(1, setting.steps + 1)
    image = setting.points()[0][:1]
    count = _REPLICAS * setting.draws
    # A stream of its own: what is checked must not be what it is checked with.
    key = jax.random.fold_in(jax.random.key(_KEY), 1)
    (curve,) = tprime.h_curves(run, score(setting, None), detector(setting), image, levels, count, key)
    hits = curve.hit.reshape(len(levels), _REPLICAS, setting.draws).sum(axis=2).T
    low, high = grid_brackets(hits, setting.draws, setting.gamma, setting.gamma_upper, setting.error)
    lower, upper = intervals.clopper_pearson(curve.hits, np.full(len(levels), count), 1 - 2e-4)
    return Truth(lower, upper, int(np.median(high - low)))


def components(records: int, seed: int) -> dict[str, dict[str, float]]:
    """E2 of as many atoms, levels chosen from bisection, with the default targets and with `TARGETS`: counts."""
    setting = Setting(records=records, leaked=records)
    run, atoms, detect = chain(setting), score(setting, None), detector(setting)
    images, key = setting.points()[0][:records], jax.random.key(seed)
    rule = Rule(setting.gamma, setting.gamma_upper, setting.error, width=3, simultaneous=False)
    seen = adaptive.intervals_of(run, atoms, detect, images, key, rule, chunk=64)
    found = {}
    for name, targets in (("default", subspace.TARGETS), ("with level 1", TARGETS)):
        mixtures = [subspace.design(seen.by_level(r), targets=targets) for r in range(records)]
        results = subspace.estimate(run, atoms, detect, images, mixtures, key, draws=PATHS)
        limits = np.array([(r.estimate.lower, r.estimate.upper) for r in results])
        found[name] = {
            "paths": float(np.mean([r.estimate.n for r in results])),
            "reliable": sum(r.estimate.reliable for r in results),
            "median_log_width": float(np.median(np.log(limits[:, 1] / limits[:, 0]))),
            "covered": int(np.sum((limits[:, 0] <= 1 / setting.atoms) & (limits[:, 1] >= 1 / setting.atoms))),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Paths that E2 takes until reliable, by its components")
    parser.add_argument("--records", type=int, default=32, help="atoms of the 1,080")
    parser.add_argument("--seed", type=int, default=21)
    asked = parser.parse_args()
    print(json.dumps({**vars(asked), **components(asked.records, asked.seed)}))


if __name__ == "__main__":
    main()
