"""Attention a head at a time is attention all together, derivatives of both modes included; the device chooses.

The barriers that made it faster on a CPU are in the programs for a CPU, and in no other.
"""

from __future__ import annotations

import re

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


LONG, WIDTH = attention.FEW + 1, 4
TURNED = f"tensor<{WIDTH}x{LONG}xf32>"
"""A head's keys, or its values, transposed."""


def _lowered(length, derivative, platform):
    """The program for ``platform``, which need not be there: nothing is compiled."""

    def back(q, k, v):
        return jax.value_and_grad(lambda *qkv: jnp.sum(attention.attend(*qkv)), (0, 1, 2))(q, k, v)

    fn = back if derivative else lambda q, k, v: attention.attend(q, k, v)
    return jax.jit(fn).trace(*_inputs(length=length)[:3]).lower(lowering_platforms=(platform,)).as_text()


def _barriers(program):
    """Types of what each barrier holds, but for recomputation's own, which holds all inputs of a head at once."""
    held = [types.split(", ") for types in re.findall(r"stablehlo\.optimization_barrier .* : (.*)", program)]
    return [types for types in held if len(types) <= 2]


@pytest.mark.parametrize(("derivative", "count"), [(False, 1), (True, 3)])
def test_on_a_cpu_keys_and_values_pass_a_barrier_transposed(derivative, count, monkeypatch):
    """The reverse pass has it again for the weights that it recomputes, and once for what it gives back."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert _barriers(_lowered(LONG, derivative, "cpu")) == [[TURNED, TURNED]] * count


def test_both_products_of_a_head_read_what_passed_the_barrier(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    [body] = [part for part in _lowered(LONG, False, "cpu").split("func.func") if "optimization_barrier" in part]
    operations = dict(re.findall(r"(%\d+)(?::\d+)? = stablehlo\.(\w+)", body))
    [(name, keys, values)] = re.findall(r"(%\d+):2 = stablehlo\.optimization_barrier (%\d+), (%\d+) :", body)
    assert (operations[keys], operations[values]) == ("transpose", "transpose")
    assert re.findall(r"stablehlo\.dot_general %\w+, (%[\d#]+),", body) == [f"{name}#0", f"{name}#1"]


@pytest.mark.parametrize("derivative", [False, True])
@pytest.mark.parametrize(("platform", "length"), [("cpu", attention.FEW), ("cuda", LONG), ("tpu", LONG)])
def test_elsewhere_attention_has_no_barrier(platform, length, derivative, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert "optimization_barrier" not in _lowered(length, derivative, platform)
