"""Attention in the form that suits the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_privacy.types import Array

FEW = 128
"""Up to this many positions one batched product is as fast on a CPU."""


def attend(q: Array, k: Array, v: Array) -> Array:
    """softmax(q kᵀ/√c) v for ``q, k, v[B, T, heads, c]``, softmax in float32; the result has the dtype of ``q``.

    On a CPU the heads of all images go one after the other (`attend_in_turn`); elsewhere all together. The numbers
    agree to rounding, gradients included.
    """
    if jax.default_backend() == "cpu" and q.shape[1] > FEW:
        return attend_in_turn(q, k, v)
    return attend_together(q, k, v)


def attend_together(q: Array, k: Array, v: Array) -> Array:
    """`attend` as batched products."""
    logits = jnp.einsum("bqhc,bkhc->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits, axis=-1).astype(q.dtype), v)


def attend_in_turn(q: Array, k: Array, v: Array) -> Array:
    """`attend`, a head of an image at a time, so that its T x T weights stay in the cache.

    The weights are computed again in the backward pass and not kept. Forward-mode derivatives work too.
    """
    batch, length, heads, width = q.shape

    @jax.checkpoint
    def one(head: tuple[Array, Array, Array]) -> Array:
        q, k, v = head
        # Transposed ahead of the barrier: reverse mode then transposes what is T x c, and no T x T weights.
        k, v = jax.lax.optimization_barrier((k.T, v.T))
        logits = (q @ k).astype(jnp.float32) * width**-0.5
        weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
        return jax.lax.dot_general(weights, v, (((1,), (1,)), ((), ())))

    def by_head(x: Array) -> Array:
        return jnp.swapaxes(x, 1, 2).reshape(batch * heads, length, width)

    out = jax.lax.map(one, (by_head(q), by_head(k), by_head(v)))
    return jnp.swapaxes(out.reshape(batch, heads, length, width), 1, 2)
