"""The adaptive Adams method keeps its tolerance in path and integral, row by row, and a wrong weight is noticed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.gaussian_mixture import GaussianMixture

from diffusion_privacy.diffusion import adaptive_multistep
from diffusion_privacy.diffusion.adaptive_multistep import PAST, solve_adaptive_multistep
from diffusion_privacy.diffusion.likelihood import LikelihoodConfig, log_likelihood
from diffusion_privacy.diffusion.ode import solve_adaptive
from diffusion_privacy.diffusion.sde import VP

END = 3.0


def logistic(tolerance, rates=(0.5, 1.0, 4.0), past=0.1):
    """y' = ρ y(1 − y) and ∫ y ds from 0 to 3 for each rate ρ: errors of both ``[rates]``, and calls.

    With y(0) = a the closed forms are y = 1/(1 + (1/a − 1) e^{−ρs}) and ∫ y ds = log(1 − a + a e^{ρs})/ρ.
    """
    rho = jnp.asarray(rates)

    def slope(s, y):
        return rho[:, None] * y * (1 - y), y

    y, q, calls = solve_adaptive_multistep(
        lambda s, y: slope(s, y)[0], slope, jnp.full((len(rates), 1), past), jnp.zeros(len(rates)),
        jnp.full(len(rates), END), rtol=tolerance, atol=tolerance, max_steps=10_000,
    )  # fmt: skip
    grown = jnp.exp(rho * END)
    path = jnp.abs(y[:, 0] - 1 / (1 + (1 / past - 1) / grown))
    return np.asarray(path), np.asarray(jnp.abs(q[:, 0] - jnp.log(1 - past + past * grown) / rho)), np.asarray(calls)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8, 1e-10])
def test_path_and_integral_stay_within_some_steps_tolerances(tolerance):
    with jax.enable_x64(True):
        path, integral, calls = logistic(tolerance)
    assert np.all(path < 10 * tolerance)
    assert np.all(integral < 10 * tolerance)
    assert np.all(np.diff(calls) > 0), "each row by itself: faster change, shorter steps"


def test_the_order_is_high():
    """A hundred times the accuracy costs 100^(1/6) = 2.2 times the steps, not 100^(1/4) = 3.2."""
    with jax.enable_x64(True):
        calls = [logistic(tolerance, (4.0,))[2][0] for tolerance in (1e-9, 1e-11)]
    assert calls[1] < 2.5 * calls[0], calls


@pytest.mark.parametrize("fault", ["rule", "order"])
def test_a_wrong_weight_loses_the_tolerance(fault, monkeypatch):
    right = adaptive_multistep._weights

    def wrong(points, valid, start, h):
        if fault == "rule":
            return right(points, valid, start, h) * (1 + 1e-4)
        # The slope before last is forgotten wherever the step's error is not concerned.
        found = right(points, valid, start, h)
        moved = 1e-3 * h * valid[-2]
        return found.at[-1].add(moved).at[-2].add(-moved)

    monkeypatch.setattr(adaptive_multistep, "_weights", wrong)
    with jax.enable_x64(True):
        path, integral, _ = logistic(1e-8)
    assert path.max() > 1e-6 or integral.max() > 1e-6


def test_a_row_does_not_depend_on_the_others():
    with jax.enable_x64(True):
        together, alone = logistic(1e-7), logistic(1e-7, (1.0,))
    for found, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(found[1], one[0], rtol=1e-6, atol=1e-11)


def test_backwards_and_nowhere():
    """From the end back to the start, and a row with no way to go, which costs one call."""

    def slope(s, y):
        return jnp.cos(s)[:, None] * y, y[:, :, None] * jnp.ones(3)

    with jax.enable_x64(True):
        start, end = jnp.array([2.0, 1.0]), jnp.array([0.5, 1.0])
        y, q, calls = solve_adaptive_multistep(
            lambda s, y: slope(s, y)[0], slope, jnp.ones((2, 2)), start, end, rtol=1e-9, atol=1e-9, max_steps=500
        )
        np.testing.assert_allclose(y[0], np.exp(np.sin(0.5) - np.sin(2.0)), rtol=1e-7)
        np.testing.assert_array_equal(y[1], 1)
        np.testing.assert_array_equal(q[1], 0)
        nodes, weights = np.polynomial.legendre.leggauss(40)
        s = 1.25 - 0.75 * nodes
        want = -0.75 * np.sum(weights * np.exp(np.sin(s) - np.sin(2.0)))
        np.testing.assert_allclose(q[0], want, rtol=1e-7)
        assert q.shape == (2, 2, 3)
        assert calls[1] == 1


def test_rows_that_do_not_arrive_are_nan_and_others_are_not():
    def slope(s, y):
        return jnp.where(y > 0, 1e6 * jnp.sin(1e4 * s)[:, None], 1.0), y

    y, q, _ = solve_adaptive_multistep(
        lambda s, y: slope(s, y)[0], slope, jnp.array([[1.0], [-100.0]]), jnp.zeros(2), jnp.ones(2),
        rtol=1e-5, atol=1e-5, max_steps=30,
    )  # fmt: skip
    assert jnp.isnan(y[0, 0])
    assert jnp.isnan(q[0, 0])
    np.testing.assert_allclose([y[1, 0], q[1, 0]], [-99.0, -99.5], rtol=1e-5)


def test_an_infinite_slope_shrinks_the_step_instead_of_entering_the_past():
    def slope(s, y):
        return jnp.where(y > 1.2, jnp.inf, 1 - y), y

    with jax.enable_x64(True):
        # Only a prediction far too long would pass 1.2.
        y, _, calls = solve_adaptive_multistep(
            lambda s, y: slope(s, y)[0], slope, jnp.zeros((1, 1)), jnp.zeros(1), jnp.full(1, 200.0),
            rtol=1e-6, atol=1e-6, max_steps=2_000,
        )  # fmt: skip
        np.testing.assert_allclose(y[0, 0], 1.0, atol=1e-5)
        assert calls[0] > 2 * PAST


def test_fewer_costly_slopes_than_runge_kutta_at_the_same_tolerance():
    def both(s, y):
        z = y[0] if isinstance(y, tuple) else y
        return jnp.sin(3 * s)[:, None] * z, jnp.cos(z) * s[:, None]

    with jax.enable_x64(True):
        args = (jnp.zeros(1), jnp.full(1, 10.0))
        z = jnp.full((1, 4), 0.5)
        limits = {"rtol": 1e-6, "atol": 1e-6, "max_steps": 5_000}
        (_, want), _ = solve_adaptive(both, (z, jnp.zeros((1, 4))), *args, rtol=1e-11, atol=1e-11, max_steps=5_000)
        (_, runge), costly = solve_adaptive(both, (z, jnp.zeros((1, 4))), *args, **limits)
        _, adams, calls = solve_adaptive_multistep(lambda s, y: both(s, y)[0], both, z, *args, **limits)
        assert calls[0] // 2 + 1 < 0.6 * costly[0], (calls, costly)
        assert jnp.abs(adams - want).max() < 3 * max(jnp.abs(runge - want).max(), 1e-6)


@pytest.mark.slow
def test_a_likelihood_is_that_of_runge_kutta_with_fewer_divergences():
    """Against 400 steps of RK4, exact divergence of a mixture in 24 dimensions."""
    sde, means = VP(), 0.5 * np.random.default_rng(0).normal(size=(3, 24))
    model = GaussianMixture(means - means.mean(0), 0.2)
    with jax.enable_x64(True):
        x = model.sample(jax.random.key(1), 4)
        keys = jax.random.split(jax.random.key(2), 4)

        def likelihood(**fields):
            config = LikelihoodConfig(divergence="exact", **fields)
            found = jax.jit(lambda x: log_likelihood(model.score(sde), sde, x, keys, config))(x)
            return np.asarray(found.nats), np.asarray(found.network_calls)

        tight, _ = likelihood(solver="rk4", steps=400)
        close = {s: likelihood(solver=s, rtol=1e-6, atol=1e-6) for s in ("adaptive", "adaptive_adams")}
    errors = {solver: np.max(np.abs(nats - tight)) for solver, (nats, _) in close.items()}
    assert errors["adaptive_adams"] < 1e-3, errors
    assert np.all(close["adaptive_adams"][1] // 2 + 1 < 0.65 * close["adaptive"][1]), close
