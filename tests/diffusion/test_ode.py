"""Solvers reach their order; the flow transports Gaussians exactly as known; times invert log-SNR."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from oracles.gaussian_mixture import GaussianMixture

from diffusion_privacy.diffusion.likelihood import SOLVERS, LikelihoodConfig, log_likelihood
from diffusion_privacy.diffusion.ode import (
    DORMAND_PRINCE,
    HEUN,
    RK4,
    ProbabilityFlow,
    solve_adaptive,
    solve_fixed,
)
from diffusion_privacy.diffusion.sde import DDPM, VE, VP, SubVP

PROCESSES = [VP(), SubVP(), VE(), DDPM()]


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
@pytest.mark.parametrize(("dtype", "tol"), [("float64", 1e-6), ("float32", 1e-4)])
def test_time_inverts_log_snr(sde, dtype, tol):
    with jax.enable_x64(dtype == "float64"):
        flow = ProbabilityFlow(sde)
        t = jnp.geomspace(sde.t_min, 1, 57, dtype=dtype)
        got = flow.time(flow.log_snr(t))
        assert got.dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(got, t, rtol=tol)


def logistic_order(tableau, counts):
    """Observed order on y' = y(1 − y), whose solution is 1/(1 + 9 e^{−s}) from y = 0.1."""
    errors = []
    for count in counts:
        nodes = jnp.linspace(0.0, 3.0, count + 1)[:, None]
        got = solve_fixed(lambda s, y: y * (1 - y), tableau, jnp.full((1, 1), 0.1), nodes)
        errors.append(float(jnp.abs(got - 1 / (1 + 9 * jnp.exp(-3.0))).max()))
    return np.log2(errors[0] / errors[1]) / np.log2(counts[1] / counts[0])


@pytest.mark.parametrize(("tableau", "order"), [(HEUN, 2), (RK4, 4), (DORMAND_PRINCE, 5)])
def test_fixed_steps_converge_with_the_order_of_the_method(tableau, order):
    with jax.enable_x64(True):
        assert abs(logistic_order(tableau, (20, 40)) - order) < 0.25


def test_a_broken_tableau_loses_its_order():
    broken = RK4._replace(b=np.array([1, 2, 2, 1]) / 6 + np.array([0.01, -0.01, 0, 0]))
    with jax.enable_x64(True):
        assert logistic_order(broken, (20, 40)) < 2.5


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE()], ids=repr)
@pytest.mark.parametrize(("tableau", "order"), [(HEUN, 2), (RK4, 4)])
def test_flow_of_a_gaussian_converges_to_its_closed_form(sde, tableau, order):
    """x_t ∝ √(α² s² + σ²) on N(0, s² I).

    To the middle of the transition: over the whole line of log-SNR the leading error term cancels.
    """
    with jax.enable_x64(True):
        flow, std = ProbabilityFlow(sde), 0.3
        field = flow.field(GaussianMixture(np.zeros((1, 2)), std).score(sde))
        ends = jnp.concatenate([jnp.ones(1), flow.time(jnp.array([2.0]))])
        spread = jnp.sqrt((sde.alpha(ends) * std) ** 2 + sde.sigma(ends) ** 2) / flow.norm(ends)
        y = jnp.array([[1.0, -0.5]])
        solve = jax.jit(lambda nodes: solve_fixed(field, tableau, y, nodes))
        errors = []
        for count in (60, 120):
            nodes = jnp.linspace(*flow.log_snr(ends), count + 1)[:, None]
            got = solve(nodes)
            errors.append(float(jnp.abs(got - y * spread[1] / spread[0]).max()))
    assert errors[1] < 1e-4
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.4


def test_adaptive_keeps_its_tolerance_and_steps_for_each_row_alone():
    def field(s, y):
        return -rate[:, None] * y * jnp.cos(s)[:, None]

    with jax.enable_x64(True):
        rate = jnp.array([0.5, 3.0, 20.0])
        y = jnp.ones((3, 2))
        args = (jnp.zeros(3), jnp.array([2.0, 2.0, 1.0]))
        got, calls = solve_adaptive(field, y, *args, rtol=1e-8, atol=1e-10, max_steps=500)
        want = jnp.exp(-rate * jnp.sin(args[1]))[:, None] * y
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
        assert calls[0] < calls[1] < calls[2]
        rate = rate[1:2]
        alone, calls_alone = solve_adaptive(
            field, y[1:2], args[0][:1], args[1][1:2], rtol=1e-8, atol=1e-10, max_steps=500
        )
        np.testing.assert_allclose(alone[0], got[1], rtol=1e-12)
        assert calls_alone[0] == calls[1]


def test_adaptive_takes_back_a_step_that_meets_a_peak():
    """∫ w/(w² + (s − ½)²) ds = 2 atan(1/(2w)): steps that were right before the peak are far too long for it."""

    def field(s, y):
        return (0.01 / (1e-4 + (s - 0.5) ** 2))[:, None] * jnp.ones_like(y)

    with jax.enable_x64(True):
        got, _ = solve_adaptive(
            field, jnp.zeros((1, 1)), jnp.zeros(1), jnp.ones(1), rtol=1e-12, atol=1e-6, max_steps=2000
        )
    assert float(got[0, 0]) == pytest.approx(2 * np.arctan(50), abs=2e-6)


def test_rows_that_do_not_arrive_are_nan_and_others_are_not():
    def field(s, y):
        return jnp.where(y > 0, 1e6 * jnp.sin(1e4 * s)[:, None], 1.0)

    y = jnp.array([[1.0], [-100.0]])
    got, _ = solve_adaptive(field, y, jnp.zeros(2), jnp.ones(2), rtol=1e-5, atol=1e-5, max_steps=30)
    assert jnp.isnan(got[0, 0])
    np.testing.assert_allclose(got[1, 0], -99.0, rtol=1e-5)


def products(jaxpr) -> list:
    """Precisions of all products in a program, inner ones included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.params["precision"])
        found += [p for inner in jaxprs_in_params(equation.params) for p in products(inner)]
    return found


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_product_of_a_solver_is_rounded_on_an_accelerator(solver):
    """Whatever `jax_default_matmul_precision` says: the default there keeps ten bits or fewer of slopes and weights."""
    config = LikelihoodConfig(solver=solver, steps=3, max_steps=5, probes=1)

    def nats(x):
        return log_likelihood(lambda x, t: -x, VP(), x, jax.random.split(jax.random.key(0), 2), config).nats

    found = products(jax.make_jaxpr(nats)(jnp.ones((2, 4))).jaxpr)
    highest = jax.lax.Precision.HIGHEST
    assert found
    assert all(p in (highest, (highest, highest)) for p in found)
