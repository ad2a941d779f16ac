"""The best rate of matrix products, seconds of compilation, and how cost grows as a size doubles."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from benchmarks.job import first_call
from benchmarks.ours.flow import MNIST, train_step
from diffusion_privacy.anonymity import tprime
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.networks.mlp import MLP
from diffusion_privacy.tasks import ScoreTask
from diffusion_privacy.training.sharding import data_mesh
from diffusion_privacy.types import Array


def _seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """The least of ``repeats`` after one to warm up: what disturbs only adds."""
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def peak() -> dict[str, Any]:
    """Operations a second of float32 products of matrices of 1024 to 4096, the best of them."""
    rates, product = {}, jax.jit(jnp.matmul)
    for n in (1024, 2048, 4096):
        a, b = (jax.random.normal(jax.random.key(i), (n * n,)).reshape(n, n) for i in range(2))
        rates[str(n)] = 2.0 * n**3 / _seconds(lambda a=a, b=b: jax.block_until_ready(product(a, b)), 7)
    return {"flops_per_s": max(rates.values()), **{f"side {n}": rate for n, rate in rates.items()}}


def compilation() -> dict[str, Any]:
    """Seconds to the first step of a scanned flow of 4 and of 16 couplings a stage, as the median of three."""
    seconds = {}
    for depth in (4, 16):
        config = dataclasses.replace(MNIST, depths=(depth,), dense_depth=0, scan=True)
        found = []
        for _ in range(3):
            jax.clear_caches()
            run = train_step(config, 32, 1)
            first = first_call(run)
            found.append(first - _seconds(run, 2))
        seconds[depth] = statistics.median(found)
    return {"4 couplings_s": seconds[4], "16 couplings_s": seconds[16], "ratio": seconds[16] / seconds[4], "goal": 1.5}


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Of log seconds against log size, least squares: 1 where the cost is proportional, 0 where it is free."""
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float))
    return float(np.polyfit(x, y, 1)[0])


def _margin(x: Array, record: Array) -> Array:
    return x[:, 0] + 0.0 * record


def _audit(records: int, draws: int, steps: int, dim: int, devices: int) -> Callable[[], object]:
    """An h(t) sweep of an MLP score at every fourth level."""
    task = ScoreTask(MLP(hidden=512, depth=3), VP(), 1)
    params = task.network.init(jax.random.key(0), jnp.zeros((1, dim)), jnp.ones(1))
    score, chain = task.score(params), Chain(VP(), steps)
    points = np.random.default_rng(0).standard_normal((records, dim), np.float32)
    levels, mesh = np.arange(4, steps + 1, 4), data_mesh(jax.devices()[:devices])

    def run() -> object:
        return tprime.h_curves(
            chain, score, Partial(_margin), points, levels, draws, jax.random.key(1), chunk=256, mesh=mesh
        )

    return run


def slopes() -> dict[str, Any]:
    """Slopes of an audit's time over records, draws, steps, dimension and devices."""
    base = {"records": 8, "draws": 32, "steps": 32, "dim": 256, "devices": 1}
    found: dict[str, Any] = {}
    for name, sizes in (
        ("records", (8, 16, 32)),
        ("draws", (32, 64, 128)),
        ("steps", (16, 32, 64)),
        ("dim", (256, 512, 1024)),
        ("devices", (1, 2)),
    ):
        if name == "devices" and jax.device_count() < 2:
            continue
        seconds = [_seconds(_audit(**{**base, name: size}), 3) for size in sizes]
        found[name] = slope(sizes, seconds)
        found[f"{name}_seconds"] = dict(zip(map(str, sizes), seconds, strict=True))
    return found


MEASUREMENTS: dict[str, Callable[[], dict[str, Any]]] = {"peak": peak, "compile": compilation, "slopes": slopes}
