"""Does E2's interval cover on a network that was trained, where the rate is known by brute force only?

    python launch.py --config=configs/digits.py --workdir=runs/digits
    python -m benchmarks.e2_learned --workdir runs/digits [--seeds 24] [--records 8] [--samples 200000]

The network is fixed: the careless model of the finished study, trained on 64 records. Audited are its private record
and the next of its training records in the order in which the seed dealt them (nobody looked at them). "Shown" means
closer than half the distance to the nearest held-out record. Every audit seed draws its own pilot, chooses its own
components and draws its own paths, as the stage does. The truth is a count of plain samples; an interval is held
against it with the count's own error allowed for (a miss is more than 3.3 standard errors of the count outside).
Printed for each record: the count, how many estimates were marked reliable, how many of those cover, and what they
scatter by beside what they say of themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from diffusion_privacy import settings
from diffusion_privacy.anonymity import intervals, montecarlo, subspace, tprime
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.settings import Study
from diffusion_privacy.stages import study as common
from diffusion_privacy.types import Array, ScoreFn

SHARE = 0.5
PILOT_LEVELS = 25
PILOT_DRAWS = 32
BLOCK = 20_000
ALLOWANCE = 3.3


@dataclasses.dataclass(frozen=True)
class Case:
    """A trained score with its sampler, and the records with their balls."""

    chain: Chain
    score: ScoreFn
    records: np.ndarray
    numbers: np.ndarray
    radius: np.ndarray


def close(records: Array, radius: Array, x: Array, record: Array) -> Array:
    """Margin of "closer than ``radius[record]`` to ``records[record]``" for ``x[B, ...]``."""
    gap = (x - records[record]).reshape(x.shape[0], -1)
    return radius[record] - jnp.sqrt(jnp.sum(gap**2, axis=1))


def load(root: Path, count: int) -> Case:
    """The careless model of the run in ``root`` and ``count`` of its records, the private one first."""
    study = settings.parse(Study, json.loads((root / "config.json").read_text()))
    roles = common.load_roles(study, common.Workdir(root, study))
    score = common.load_score(study, common.Workdir(root.absolute(), study), "careless")
    trained, never = roles.train["careless"], np.concatenate([roles.held_out.image, roles.controls.image])
    records = np.asarray(trained.image)[:count]
    far = np.stack([np.sqrt(np.sum((never - r) ** 2, axis=(1, 2, 3))).min() for r in records])
    return Case(common.make_chain(study, common.make_sde(study)), score, records, trained.index[:count], SHARE * far)


def brute_force(case: Case, samples: int) -> np.ndarray:
    """Hits of each record in so many plain samples."""
    detect = Partial(close, jnp.asarray(case.records), jnp.asarray(case.radius))
    hits = np.zeros(len(case.records), int)
    for block in range(-(-samples // BLOCK)):
        key = jax.random.fold_in(jax.random.key(1_000), block)
        size = min(BLOCK, samples - block * BLOCK)
        drawn = montecarlo.sample(case.chain, case.score, case.records.shape[1:], size, key, chunk=1024)
        hits += np.sum(montecarlo.margins(detect, drawn, len(case.records)) > 0, axis=0)
        print(f"{block * BLOCK + size:,} samples: {hits.tolist()}", flush=True)
    return hits


def audits(case: Case, seed: int, draws: int, most: int) -> list[subspace.SubspaceResult]:
    """E2 of every record as the stage runs it, under one audit seed."""
    detect = Partial(close, jnp.asarray(case.records), jnp.asarray(case.radius))
    pilot, main = jax.random.split(jax.random.key(seed))
    levels = np.unique(np.round(np.linspace(1, case.chain.steps, PILOT_LEVELS)).astype(int))
    curves = tprime.h_curves(case.chain, case.score, detect, case.records, levels, PILOT_DRAWS, pilot, chunk=1024)
    mixtures = [subspace.design(c.by_level) for c in curves]
    return subspace.estimate(
        case.chain, case.score, detect, case.records, mixtures, main, draws=draws, max_draws=most, chunk=1024
    )


def judge(case: Case, hits: np.ndarray, samples: int, found: list[list[subspace.SubspaceResult]]) -> list[dict]:
    """A row a record from ``found[seed][record]``."""
    rows = []
    for r, number in enumerate(case.numbers.tolist()):
        truth = hits[r] / samples
        slack = ALLOWANCE * np.sqrt(truth * (1 - truth) / samples)
        estimates = [one[r].estimate for one in found]
        sure = [e for e in estimates if e.reliable]
        covers = [e.lower - slack <= truth <= e.upper + slack for e in sure]
        loose = [e.lower - slack <= truth <= e.upper + slack for e in estimates if not e.reliable]
        values = np.array([e.value for e in sure])
        limits = intervals.clopper_pearson(sum(covers), len(covers), 0.95) if covers else (0.0, 1.0)
        row: dict[str, Any] = {"record": number, "hits": int(hits[r]), "truth": float(truth)}
        row |= {
            "reliable": len(sure),
            "of": len(estimates),
            "covered": int(sum(covers)),
            "coverage_limits": [float(v) for v in limits],
        }
        row |= {"not_reliable_covered": int(sum(loose)), "mean": float(values.mean()) if len(sure) else None}
        row |= {"scatter": float(values.std(ddof=1) / truth) if len(sure) > 1 else None}
        row |= {"own_stderr": float(np.median([e.log_stderr for e in sure])) if sure else None}
        row |= {"missed_above": int(sum(e.upper + slack < truth for e in sure))}
        row |= {"missed_below": int(sum(e.lower - slack > truth for e in sure)), "values": [e.value for e in estimates]}
        row |= {"lower": [e.lower for e in estimates], "upper": [e.upper for e in estimates]}
        row |= {"marked": [e.reliable for e in estimates], "pareto_k": [one[r].pareto_k for one in found]}
        row |= {"ess": [e.ess for e in estimates], "n": [e.n for e in estimates]}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a finished run of configs/digits.py")
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--draws", type=int, default=1024)
    parser.add_argument("--max_draws", type=int, default=4096)
    parser.add_argument("--out", type=Path, help="where the JSON goes as well")
    options = parser.parse_args()
    case = load(options.workdir, options.records)
    hits = brute_force(case, options.samples)
    found = []
    for seed in range(options.seeds):
        found.append(audits(case, seed, options.draws, options.max_draws))
        print(f"seed {seed}: {[round(f.estimate.value * 1e4) for f in found[-1]]} in 10,000", flush=True)
    rows = judge(case, hits, options.samples, found)
    for row in rows:
        print(
            f"record {row['record']}: count {row['hits']}/{options.samples:,} = {row['truth']:.5f}; reliable "
            f"{row['reliable']} of {row['of']}, covered {row['covered']}; mean {row['mean']}, "
            f"scatter {row['scatter']}, own standard error {row['own_stderr']}"
        )
    covered, sure = sum(row["covered"] for row in rows), sum(row["reliable"] for row in rows)
    print(f"all: {covered} of {sure} reliable intervals cover")
    result = {"settings": {k: v for k, v in vars(options).items() if k not in ("workdir", "out")}, "rows": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
