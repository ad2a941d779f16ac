"""The arm of private training on a table: a linear model of the private rows themselves, by clipped and noised descent.

What a release of rows is held against: at the same ε and δ one may train on the originals, and get a model and no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.audits.table_utility import Transfer, features, score
from diffusion_privacy.data.tables import Table
from diffusion_privacy.mechanisms import dp_gradient
from diffusion_privacy.settings_cadp import CadpTable
from diffusion_privacy.training import rng
from diffusion_privacy.types import Array, PyTree


def _cross_entropy(params: PyTree, x: Array, y: Array) -> Array:
    return -jax.nn.log_softmax(x @ params["weight"] + params["bias"])[y]


def _squared_error(params: PyTree, x: Array, y: Array) -> Array:
    return 0.5 * jnp.square(x @ params["weight"][:, 0] + params["bias"][0] - y)


def transfers(
    settings: CadpTable, private: Table, test: Table, spends: Sequence[tuple[float, float]]
) -> list[Transfer]:
    """Scores on real test rows of models that are (ε, δ)-private for replacing a row, one for each of ``spends``.

    Logistic or least-squares regression on the features of `table_utility.train_and_test`, by
    `mechanisms.dp_gradient.descend` from zero, ``evaluation.draws`` times with other noise. Its noise comes from the
    run's seed, since no such model is given away.

    Raises:
      InputError: ε <= 0, or δ outside (0, 1) or >= 1/n.
    """
    options, target = settings.evaluation, settings.evaluation.target
    column = private.schema.column(target)
    x, x_test = (jnp.asarray(features(table, target), jnp.float32) for table in (private, test))
    if column.kind == "categorical":
        loss, outputs, centre, scale = _cross_entropy, len(column.categories), 0.0, 1.0
        y = jnp.asarray(private.data[target], jnp.int32)
    else:
        loss, outputs, (centre, scale) = _squared_error, 1, column.standard
        y = jnp.asarray((private.data[target] - centre) / scale, jnp.float32)
    start = {"weight": jnp.zeros((x.shape[1], outputs)), "bias": jnp.zeros(outputs)}

    def run(key: Array, multiplier: Array) -> Array:
        params = dp_gradient.descend(
            loss, start, x, y, key, multiplier,
            clip=options.dp_clip, steps=options.dp_steps, learning_rate=options.dp_learning_rate,
        )  # fmt: skip
        return x_test @ params["weight"] + params["bias"]

    keys = jax.random.split(rng.stream(settings.seed, "dp_table"), options.draws)
    needed = [dp_gradient.noise_multiplier(e, delta, options.dp_steps, len(private)) for e, delta in spends]
    over_draws = jax.vmap(run, in_axes=(0, None))
    raw = np.asarray(jax.jit(lambda m: jax.lax.map(lambda one: over_draws(keys, one), m))(jnp.asarray(needed)))
    guesses = np.argmax(raw, axis=-1) if column.kind == "categorical" else raw[..., 0] * scale + centre
    return [score(rows, test, target, level=options.level) for rows in guesses]
