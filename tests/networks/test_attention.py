"""Attention a head at a time is attention all together, derivatives of both modes included; the device chooses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.networks import attention


def _inputs(dtype=jnp.float32, length=5):
    return tuple(jnp.asarray(np.random.default_rng(0).standard_normal((4, 2, length, 3, 4)), dtype))


@pytest.mark.parametrize("form", [attention.attend_together, attention.attend_in_turn])
def test_against_the_formula_in_float64(form):
    q, k, v, _ = (np.asarray(x, np.float64) for x in _inputs())
    logits = np.einsum("bqhc,bkhc->bhqk", q, k) / 2.0
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = np.einsum("bhqk,bkhc->bqhc", weights, v)
    np.testing.assert_allclose(jax.jit(form)(*_inputs()[:3]), wanted, atol=2e-6)


def test_both_forms_have_the_same_derivatives():
    q, k, v, g = _inputs()
    found = {}
    for form in (attention.attend_together, attention.attend_in_turn):
        back = jax.jit(lambda q, k, v, form=form: jax.vjp(form, q, k, v)[1](g))(q, k, v)
        ahead = jax.jit(lambda q, k, v, form=form: jax.jvp(form, (q, k, v), (v, q, k)))(q, k, v)
        found[form] = jax.tree.leaves((back, ahead))
    for a, b in zip(*found.values(), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_bfloat16_keeps_its_type_and_takes_its_softmax_in_float32():
    exact = attention.attend_together(*_inputs()[:3])
    for form in (attention.attend_together, attention.attend_in_turn):
        out = jax.jit(form)(*_inputs(jnp.bfloat16)[:3])
        assert out.dtype == jnp.bfloat16
        assert jnp.max(jnp.abs(out.astype(jnp.float32) - exact)) < 0.1


@pytest.mark.parametrize(
    ("platform", "length", "loops"), [("cpu", 129, True), ("cpu", 128, False), ("gpu", 129, False)]
)
def test_only_a_cpu_with_many_positions_takes_heads_in_turn(platform, length, loops, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    program = str(jax.make_jaxpr(lambda q, k, v: attention.attend(q, k, v))(*_inputs(length=length)[:3]))
    assert ("scan[" in program) == loops
