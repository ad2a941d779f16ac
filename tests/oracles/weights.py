"""Parameters for tests of networks, without compiling their initialisers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def apply(net: nn.Module) -> Callable[..., Any]:
    """The compiled forward pass; eager flax would compile every layer by itself."""
    return jax.jit(net.apply)


def random_params(net: nn.Module, *inputs: Any, seed: int = 0) -> Any:
    """Random values in the structure of ``net.init``: away from the zero start, so that every path matters."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in) * (0.3 if leaf.ndim == 1 else 1), leaf.dtype)

    return jax.tree.map(draw, shapes)
