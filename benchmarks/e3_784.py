"""E3 at the size of a 28x28 image on a model whose rate is known: how far off, at what cost?

    python -m benchmarks.e3_784 [--draws 256] [--at 0.41] [--sampler flow] [--repeats 1] [--out e3.json]

The model's score is the closed form of an empirical measure of 100 points with 784 values. They are one orbit of a
cyclic group with which prior, score and every step of a deterministic sampler commute, so that the sampler as it is
run lands nearest to each point in exactly 1 of 100 draws. Without `--at`, the pilot, its levels and the mixture are
those of the audit's stage; with it, weights are read at that time alone and 4 % of the draws are plain samples.

`--sampler flow` is the probability flow (RK4), its divergence exact (784 tangents a call) or by `--divergence
hutchinson`; `--sampler ddim` takes DDIM's own steps, their determinants from whole Jacobians and their inverses by
Newton's method: for an accelerator. `--repeats` runs as many seeds. One run's own standard error is larger than their
scatter, because it does not use that the numbers of plain and guided draws are fixed. Direct sampling would need
(1 − q)/(q r²) images for the relative error r; that number stands beside the one reached.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from benchmarks.adaptive_audit import atom_score, nearest, orbit
from diffusion_privacy.anonymity import change_of_variables, subspace
from diffusion_privacy.anonymity.subspace import Mixture
from diffusion_privacy.anonymity.transport import Continuous, Discrete, Transport
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.types import Array

ATOMS = 100
DIM = 784
PILOT_LEVELS = 12
PILOT_DRAWS = 32
PLAIN = 0.04


def transport(options: argparse.Namespace) -> Transport:
    """The deterministic sampler that the options name."""
    if options.sampler == "ddim":
        return Discrete(Chain(VP(), options.steps))
    flow = Chain(VP(), options.steps, spacing="log_snr")
    return Continuous(flow, options.divergence, probes=options.probes, chunk=options.tangents)


def mixture_of(sampler: Transport, score: Partial, detect: Partial, record: np.ndarray, key: Array) -> Mixture:
    """The stage's own choice for ``record[1, d]``, from a pilot."""
    levels = np.unique(np.round(np.linspace(1, sampler.chain.steps, PILOT_LEVELS)).astype(int))
    curves = change_of_variables.h_curves(sampler, score, detect, record, levels, PILOT_DRAWS, key, chunk=PILOT_DRAWS)
    return subspace.design(curves[0], guidance=(1.0,))


def one(sampler: Transport, points: np.ndarray, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """E3 of the first of ``points[n, d]``."""
    score, detect = Partial(atom_score, jnp.asarray(points)), Partial(nearest, jnp.asarray(points))
    pilot, main = jax.random.split(jax.random.key(seed))
    began = time.monotonic()
    if options.at is None:
        mixture = mixture_of(sampler, score, detect, points[:1], pilot)
    else:
        level = int(np.argmin(np.abs(sampler.chain.times[1:] - options.at))) + 1
        mixture = Mixture((level,), (1.0,), (1 - PLAIN,), PLAIN)
    (found,) = change_of_variables.estimate(
        sampler, score, detect, points[:1], [mixture], main, draws=options.draws, chunk=options.chunk
    )
    e3 = found.estimate
    return {
        "seed": seed,
        "q": e3.value,
        "relative_error": e3.value * len(points) - 1,
        "log_stderr": e3.log_stderr,
        "lower": e3.lower,
        "upper": e3.upper,
        "level": e3.level,
        "effective_draws": e3.ess,
        "reliable": e3.reliable,
        "reasons": list(e3.reasons),
        "times": [float(sampler.chain.times[k]) for k in mixture.levels],
        **{name: getattr(found, name) for name in ("hits", "failed", "residual", "folded", "probe_bias", "pareto_k")},
        "network_calls": e3.network_calls,
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--at", type=float, help="time in (0, 1] at which weights are read; default: as the stage does")
    parser.add_argument("--sampler", choices=("flow", "ddim"), default="flow")
    parser.add_argument("--divergence", choices=("exact", "hutchinson"), default="exact", help="of the flow")
    parser.add_argument("--probes", type=int, default=32, help="Hutchinson's, of the flow")
    parser.add_argument("--tangents", type=int, default=64, help="carried at once by the flow's exact divergence")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=32, help="draws handled at a time")
    parser.add_argument("--repeats", type=int, default=1, help="seeds, from --seed on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the JSON goes as well")
    options = parser.parse_args()
    # Accelerators round the factors of products to ten bits by default, which is no closed form any more.
    jax.config.update("jax_default_matmul_precision", "highest")
    sampler, truth = transport(options), 1 / ATOMS
    points = orbit(ATOMS, 0, DIM)
    runs = []
    for seed in range(options.seed, options.seed + options.repeats):
        run = one(sampler, points, seed, options)
        runs.append(run)
        print(
            f"seed {seed}: q {run['q']:.6f} [{run['lower']:.6f}, {run['upper']:.6f}], {run['relative_error']:+.2%} "
            f"off, own standard error {run['log_stderr']:.2%}, {'reliable' if run['reliable'] else 'not reliable'}, "
            f"{run['network_calls']:,} calls, {run['seconds']:.0f} s",
            flush=True,
        )
    off = float(np.sqrt(np.mean([run["relative_error"] ** 2 for run in runs])))
    direct = (1 - truth) / (truth * off**2)
    print(f"off by {off:.2%} (root mean square of {len(runs)}); direct sampling: {direct:,.0f} images for as much")
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    result = {"device": str(jax.devices()[0].device_kind), "truth": truth, "settings": settings, "runs": runs}
    result |= {"root_mean_square_relative_error": off, "direct_images": direct}
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
