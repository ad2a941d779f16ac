"""The U-Net of 1.6 million parameters at 32x32: forward pass, training step, DDIM, and the h(t) sweep of an audit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from benchmarks import pairs, shapes
from benchmarks.job import Job, fastest, first_call
from benchmarks.update import Update
from diffusion_privacy.anonymity import tprime
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.samplers import Sampler, sample
from diffusion_privacy.diffusion.sde import DDPM
from diffusion_privacy.stages import operations
from diffusion_privacy.tasks import ScoreTask
from diffusion_privacy.training import sharding
from diffusion_privacy.training.sharding import REPLICATED, SHARDED
from diffusion_privacy.training.state import TrainConfig
from diffusion_privacy.types import Array, PyTree

_PAIR = pairs.SMALL
_SDE = DDPM()
_PIECE = 8
"""Images that a device has in hand at a time: as fast as 2 or 4 and faster than 16 or 32. The peer may choose too."""


def forward_flops(pair: pairs.UNetPair = _PAIR) -> float:
    """Of one image."""
    net = pair.network()
    layout = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *pair.shape)), jnp.ones(1))
    return operations.count(net.apply, layout, jnp.zeros((1, *pair.shape)), jnp.ones(1))


def _facts(run: Callable[[], Any]) -> dict[str, Any]:
    return {"first_call_s": first_call(run), "parameters": _PAIR.parameters, "devices": jax.device_count()}


def _on_mesh(array: Any) -> Any:
    return sharding.put_batch(array, sharding.data_mesh())


def _apply(params: PyTree, x: Array, t: Array) -> Array:
    return sharding.in_pieces(lambda x, t: _PAIR.network().apply(params, x, t), _PIECE, x, t)


def _forward() -> Job:
    net, mesh, batch = _PAIR.network(), sharding.data_mesh(), shapes.UNET_BATCH
    params = sharding.put_replicated(pairs.random_params(net, _PAIR.shape), mesh)
    x = _on_mesh(np.random.default_rng(1).standard_normal((batch, *_PAIR.shape), np.float32))
    t = _on_mesh(np.linspace(0.1, 0.9, batch, dtype=np.float32))
    program = sharding.data_parallel(_apply, mesh, in_specs=(REPLICATED, SHARDED, SHARDED), out_specs=SHARDED)

    def run() -> None:
        jax.block_until_ready(program(params, x, t))

    return Job(run, batch, batch * forward_flops(), _facts(run))


def _train() -> Job:
    """By the faster of the two libraries that a config may name for it."""
    batch = shapes.UNET_BATCH
    pieces = max(1, batch // (_PIECE * jax.device_count()))
    params = pairs.random_params(_PAIR.network(), _PAIR.shape)
    rows = {"image": shapes.images(batch, _PAIR.shape)[0], "position": np.arange(batch, dtype=np.int32)}

    def update(convolutions: str) -> Update:
        config = TrainConfig(
            steps=1_000_000, batch_size=batch, learning_rate=1e-6, micro_batches=pieces, convolutions=convolutions
        )
        return Update(ScoreTask(_PAIR.network(), _SDE, batch), config, params, rows)

    runs: dict[str, Callable[[], object]] = {name: update(name) for name in ("default", "onednn")}
    first = {name: first_call(run) for name, run in runs.items()}
    chosen, seconds = fastest(runs)
    facts = {"convolutions": chosen, "seconds": seconds, "first_call_s": first[chosen]}
    facts |= {"parameters": _PAIR.parameters, "devices": jax.device_count()}
    return Job(runs[chosen], batch, 3 * batch * forward_flops(), facts)


def _score() -> Partial:
    params = jax.tree.map(jnp.asarray, pairs.random_params(_PAIR.network(), _PAIR.shape))
    return ScoreTask(_PAIR.network(), _SDE, shapes.SAMPLED).score(params)


def _draw(score: Partial, keys: Array) -> Array:
    method = Sampler(name="ddim", steps=shapes.DDIM_STEPS)

    def draw(keys: Array) -> Array:
        return sample(score, _SDE, method, jax.vmap(jax.random.wrap_key_data)(keys), _PAIR.shape)

    return sharding.in_pieces(draw, _PIECE, keys)


def _ddim() -> Job:
    mesh = sharding.data_mesh()
    keys = _on_mesh(np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), shapes.SAMPLED))))
    score = _score()
    program = sharding.data_parallel(_draw, mesh, in_specs=(REPLICATED, SHARDED), out_specs=SHARDED)

    def run() -> None:
        jax.block_until_ready(program(score, keys))

    work = shapes.SAMPLED * shapes.DDIM_STEPS * forward_flops()
    return Job(run, shapes.SAMPLED, work, _facts(run))


def _margin(x: Array, record: Array) -> Array:
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1) + 0.0 * record


def _sweep() -> Job:
    chain, score, levels = Chain(_SDE, shapes.SWEEP_STEPS), _score(), np.array(shapes.SWEEP_LEVELS)
    record = shapes.images(1, _PAIR.shape)[0]
    key = jax.random.key(0)

    def run() -> None:
        tprime.h_curves(chain, score, Partial(_margin), record, levels, shapes.SWEEP_DRAWS, key, chunk=_PIECE)

    evaluations = int(levels.sum()) * shapes.SWEEP_DRAWS
    return Job(run, evaluations, evaluations * forward_flops(), _facts(run))


JOBS: dict[str, Callable[[], Job]] = {"forward": _forward, "train": _train, "ddim": _ddim, "sweep": _sweep}
