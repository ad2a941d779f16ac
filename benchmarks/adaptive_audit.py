"""Network calls of the paper's grid beside those of the adaptive audit, at equal width of the intervals.

    python -m benchmarks.adaptive_audit [--records 128] [--paths 1024] [--seed 0]

The model is a memoriser whose score is closed form: some of the audited records are its atoms, the rest are held out;
the detector names the nearest record. By symmetry q is the same for all atoms.

t': the grid draws 16 chains at each of 100 levels (Dombrowski & Kainz, arXiv 2306.01363), read with exact limits
corrected for 100 levels: the highest level with lower limit > γ, and the lowest above it with upper limit <= γ'. The
adaptive audit is asked for a bracket no wider than the grid's median one in its group (atoms, a quarter; held out), at
the same error of 5 % a record.

q, with four times the records and as many atoms: the grid and then E2 with the same number of paths on every record,
beside screening (a quarter goes on), bisection and successive halving. Its finalists, as many as there are atoms, get
half as many paths again, so that the widths (of log q, nats) come out alike.

Counted are score evaluations of the reverse chains (a draw from level k costs k) and of screening; a count does not
depend on the machine. Timed, beside diffusers: `python -m benchmarks --only audit_one audit_64`.
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

from benchmarks.audit_setting import grid_brackets, orbit
from diffusion_privacy.anonymity import adaptive, halving, lanes, screening, subspace, tprime
from diffusion_privacy.anonymity.adaptive import Rule
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.types import SDE, Array

STEPS = 100
GRID_DRAWS = 16
ERROR = 0.05
THRESHOLDS = ((0.5, 0.5), (0.3, 0.6), (0.1, 0.5), (0.02, 0.5))
DIM = 16
CHUNK = 1024


_VP = VP()


def atom_score(atoms: Array, x: Array, t: Array, sde: SDE = _VP) -> Array:
    """Score at ``x[B, ...]`` of the empirical measure of ``atoms[n, d]``, smoothed by a standard deviation of .01."""
    flat = x.reshape(len(x), -1)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    var = sigma**2 + (0.01 * alpha) ** 2
    square = alpha**2 * jnp.sum(atoms**2, axis=1) - 2 * alpha * flat @ atoms.T
    return ((alpha * (jax.nn.softmax(-square / (2 * var), axis=1) @ atoms) - flat) / var).reshape(x.shape)


def nearest(points: Array, x: Array, record: Array) -> Array:
    """Margin of "record is the nearest of ``points[n, d]``" for ``x[B, ...]``."""
    square = jnp.sum(points**2, axis=1) - 2 * x.reshape(len(x), -1) @ points.T
    own = jnp.take_along_axis(square, record[:, None], axis=1)[:, 0]
    others = jnp.where(jnp.arange(points.shape[0]) == record[:, None], jnp.inf, square)
    return jnp.min(others, axis=1) - own


@dataclasses.dataclass(frozen=True)
class Case:
    """The oracle: records, which of them the model holds, and what is fixed."""

    records: np.ndarray
    held: np.ndarray
    chain: Chain
    score: Partial
    detect: Partial
    key: Array


def make_case(count: int, stride: int, seed: int) -> Case:
    """``count`` records, every ``stride``-th an atom of the model."""
    points = orbit(count, seed, DIM)
    held = np.arange(count) % stride == 0
    score, detect = Partial(atom_score, jnp.asarray(points[held])), Partial(nearest, jnp.asarray(points))
    return Case(points, held, Chain(VP(), STEPS), score, detect, jax.random.key(seed))


def t_prime(case: Case, hits: np.ndarray) -> list[dict[str, Any]]:
    """A row for each pair of thresholds and group of records."""
    levels = np.arange(1, STEPS + 1)
    paper = int(levels.sum()) * GRID_DRAWS
    rows = []
    for gamma, upper in THRESHOLDS:
        low, high = grid_brackets(hits, GRID_DRAWS, gamma, upper, ERROR)
        for name, group in (("atoms", case.held), ("held out", ~case.held)):
            number = np.flatnonzero(group)
            wide = int(np.median((high - low)[number]))
            rule = Rule(gamma, upper, ERROR, width=wide, simultaneous=False)
            moved = Partial(_among, jnp.asarray(number), lanes.operand(case.detect))
            found = adaptive.intervals_of(
                case.chain, case.score, moved, case.records[number], case.key, rule, uids=number, chunk=CHUNK
            )
            width = [(i.upper_level or STEPS + 1) - (i.lower_level or 0) for i in found.intervals]
            calls = found.network_calls / number.size
            row = {"gamma": gamma, "gamma_upper": upper, "records": name, "n": int(number.size)}
            row |= {"grid_width": float(np.mean((high - low)[number])), "adaptive_width": float(np.mean(width))}
            row |= {"grid_calls": paper, "adaptive_calls": calls, "ratio": paper / calls}
            row |= {"finished": float(np.mean([i.finished for i in found.intervals]))}
            rows.append(row)
            print(
                f"{gamma:5.2f} {upper:5.2f}  {name:9s}{row['grid_width']:11.2f}{row['adaptive_width']:15.2f}"
                f"{paper:12,d}{calls:17,.0f}{row['ratio']:8.1f}"
            )
    return rows


def overall(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Ratio over all records for each pair of thresholds: a quarter of them leaks."""
    found = []
    for atoms, others in zip(rows[::2], rows[1::2], strict=True):
        calls = [sum(row[side] * row["n"] for row in (atoms, others)) for side in ("grid_calls", "adaptive_calls")]
        found.append({"gamma": atoms["gamma"], "gamma_upper": atoms["gamma_upper"], "ratio": calls[0] / calls[1]})
        print(f"{atoms['gamma']:5.2f} {atoms['gamma_upper']:5.2f}  all {calls[0] / calls[1]:62.1f}")
    return found


def _among(rows: Array, detect: Partial, x: Array, record: Array) -> Array:
    return detect(x, rows[record])


def _log_width(results: list[subspace.SubspaceResult]) -> float:
    return float(np.mean([np.log(r.estimate.upper / r.estimate.lower) for r in results]))


def fixed_rates(case: Case, draws: int) -> tuple[int, dict[int, subspace.SubspaceResult]]:
    """(calls for all records, E2 of the atoms by record): the grid, then E2 with components from its curves.

    The same number of draws is spent on every record, so that the count is known; only the atoms' are drawn here.
    """
    number = np.flatnonzero(case.held)
    detect = Partial(_among, jnp.asarray(number), lanes.operand(case.detect))
    images, levels = case.records[number], np.arange(1, STEPS + 1)
    key = jax.random.fold_in(case.key, 1)
    curves = tprime.h_curves(case.chain, case.score, detect, images, levels, GRID_DRAWS, key, uids=number, chunk=CHUNK)
    mixtures = [subspace.design(c.by_level) for c in curves]
    found = subspace.estimate(
        case.chain, case.score, detect, images, mixtures, key, uids=number, draws=draws, max_draws=draws, chunk=CHUNK
    )
    each = curves[0].network_calls + found[0].estimate.network_calls
    return each * len(case.records), dict(zip(number.tolist(), found, strict=True))


def rates(case: Case, draws: int) -> dict[str, Any]:
    """Grid and E2 on every record, beside screening, bisection and halving."""
    finalists = int(case.held.sum())
    fixed, atoms = fixed_rates(case, draws)
    screened = screening.screen(case.chain, case.score, case.records, case.key, chunk=CHUNK)
    top = np.sort(screened.ranking[: len(case.records) // 4])
    detect = Partial(_among, jnp.asarray(top), lanes.operand(case.detect))
    rule = Rule(0.1, 0.5, ERROR, simultaneous=False)
    audit = adaptive.intervals_of(
        case.chain, case.score, detect, case.records[top], case.key, rule, uids=top, chunk=CHUNK
    )
    mixtures = [subspace.design(audit.by_level(i)) for i in range(len(top))]
    # Levels seen by bisection choose E2's components a little less well than a whole grid: more paths make up for it.
    paths = draws * 3 // 2
    ladder = halving.Ladder(finalists, final_draws=paths, max_draws=paths, simultaneous=False)
    final = halving.successive_halving(
        case.chain, case.score, detect, case.records[top], mixtures, case.key, ladder, uids=top, chunk=CHUNK
    )
    chosen = top[final.finalists]
    adaptive_calls = screened.network_calls + audit.network_calls + final.network_calls
    both = [(atoms[r], e2) for r, e2 in zip(chosen.tolist(), final.results, strict=True) if r in atoms]
    recall = {
        f"recall_{share:g}": screening.recall_at(screened.score, case.held, share) for share in (0.01, 0.05, 0.25)
    }
    return {
        "records": len(case.records),
        "atoms": finalists,
        "paths": [draws, paths],
        "atoms_among_finalists": len(both),
        "recall_of_screening": {
            name: dataclasses.asdict(rate) | {"value": rate.value} for name, rate in recall.items()
        },
        "fixed_log_width": _log_width([fixed_one for fixed_one, _ in both]),
        "adaptive_log_width": _log_width([e2 for _, e2 in both]),
        "reliable": [sum(pair[i].estimate.reliable for pair in both) for i in (0, 1)],
        "fixed_calls": fixed,
        "adaptive_calls": adaptive_calls,
        "screening_calls": screened.network_calls,
        "bisection_calls": audit.network_calls,
        "halving_calls": final.network_calls,
        "ratio": fixed / adaptive_calls,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=128, help="audited records of t', a multiple of 4")
    parser.add_argument("--paths", type=int, default=1024, help="E2's paths a record")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.records < 16 or options.records % 4:
        parser.error(f"--records must be a multiple of 4 and 16 or more, got {options.records}")
    case = make_case(options.records, 4, options.seed)
    curves = tprime.h_curves(
        case.chain, case.score, case.detect, case.records, np.arange(1, STEPS + 1), GRID_DRAWS, case.key, chunk=CHUNK
    )
    print("t', widths in levels of 100, calls a record")
    print("    γ    γ'  records   grid width  adaptive width  grid calls  adaptive calls   ratio")
    rows = t_prime(case, np.stack([c.hits for c in curves]))
    everyone = overall(rows)
    q = rates(make_case(4 * options.records, 16, options.seed), options.paths)
    print(
        f"q: {q['fixed_calls']:,} calls fixed, {q['adaptive_calls']:,} adaptive, ratio {q['ratio']:.1f}; width of log q"
    )
    print(f"   {q['fixed_log_width']:.2f} fixed, {q['adaptive_log_width']:.2f} adaptive")
    print(json.dumps({"seed": options.seed, "t_prime": rows, "all": everyone, "q": q}))


if __name__ == "__main__":
    main()
