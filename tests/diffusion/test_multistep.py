"""The Adams method reaches its order in path and integral, a wrong coefficient loses it; the clock measures its way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.gaussian_mixture import GaussianMixture

from diffusion_privacy.diffusion.likelihood import LikelihoodConfig, log_likelihood
from diffusion_privacy.diffusion.multistep import Grid, grid, solve_multistep
from diffusion_privacy.diffusion.ode import ProbabilityFlow
from diffusion_privacy.diffusion.sde import DDPM, VE, VP, SubVP

PROCESSES = [VP(), SubVP(), VE(), DDPM()]


def logistic(grid):
    """Errors at s = 3 of y' = y(1 − y), y(0) = 0.1 (closed form 1/(1 + 9 e^{−s})) and of ∫ y ds = log((9 + e^s)/10)."""
    places = jnp.asarray(3 * grid.nodes)[:, None]

    def slope(s, y):
        return y * (1 - y), y[:, 0]

    y, q = solve_multistep(
        lambda s, y: slope(s, y)[0], slope, jnp.full((1, 1), 0.1), grid, places, jnp.full_like(places, 3.0)
    )
    end = jnp.exp(3.0)
    return np.array([abs(y[0, 0] - 1 / (1 + 9 / end)), abs(q[0] - jnp.log((9 + end) / 10))])


def orders(change=lambda grid: grid):
    with jax.enable_x64(True):
        return np.log2(logistic(change(grid(64))) / logistic(change(grid(128))))


def test_path_and_integral_converge_with_fourth_order():
    assert np.all(np.abs(orders() - 4) < 0.25)


@pytest.mark.parametrize(("field", "left"), [("predict", 2), ("correct", 1)])
def test_a_wrong_coefficient_loses_the_order(field, left):
    def broken(grid: Grid) -> Grid:
        wrong = getattr(grid, field).copy()
        wrong[:, -2:] += 0.05 * np.diff(grid.nodes)[:, None] * [1, -1]
        return grid._replace(**{field: wrong})

    assert np.all(orders(broken) < left + 0.5)


def test_a_wrong_weight_spoils_the_integral_alone():
    def broken(grid: Grid) -> Grid:
        return grid._replace(weights=grid.weights * (1 + 1e-3 * np.cos(np.arange(len(grid.weights)))))

    with jax.enable_x64(True):
        right, wrong = logistic(grid(64)), logistic(broken(grid(64)))
    assert wrong[0] == right[0]
    assert wrong[1] > 10 * right[1]


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_nodes_start_at_the_start_and_weights_integrate(count):
    found = grid(count)
    assert (found.nodes[0], found.nodes[-1]) == (0, 1)
    assert np.all(np.diff(found.nodes) > 0)
    np.testing.assert_allclose(found.predict.sum(1), np.diff(found.nodes), rtol=1e-9)
    np.testing.assert_allclose(found.correct.sum(1), np.diff(found.nodes), rtol=1e-9)
    if count == 20:
        np.testing.assert_allclose(found.weights @ np.exp(found.nodes[:-1]), np.e - 1, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_the_clock_has_gone_the_fraction_it_says_and_its_speed_is_its_slope(sde):
    with jax.enable_x64(True):
        flow = ProbabilityFlow(sde)
        # The last row has no way to go.
        start, end = flow.log_snr(jnp.array([sde.t_min, 0.3, 1.0])), flow.log_snr(jnp.ones(3))
        places = jnp.array([0.0, 0.05, 0.4, 0.9, 1.0])
        clock = jax.jit(flow.clock)
        log_snr, speed = clock(start, end, places)
        t = jax.vmap(flow.time)(log_snr)
        gone = (log_snr - start) / (end - start) / 2 + (t - t[0]) / (t[-1] - t[0]) / 2
        np.testing.assert_allclose(gone[:, :2], jnp.broadcast_to(places[:, None], (5, 2)), atol=2e-6)
        np.testing.assert_allclose(log_snr[:, 2], end[2])
        assert np.all(speed[:, 2] == 0)
        step = 1e-4
        ahead, behind = (clock(start, end, places + v)[0][1:4] for v in (step, -step))
        np.testing.assert_allclose(speed[1:4, :2], (ahead - behind)[:, :2] / (2 * step), rtol=2e-2)


def test_in_float32_the_clock_is_that_of_float64():
    flow = ProbabilityFlow(VP())
    places = np.linspace(0, 1, 9)
    ends = [np.float32(9.0), np.float32(-10.0)]
    short = jax.jit(flow.clock)(*(jnp.full(1, v) for v in ends), jnp.asarray(places, jnp.float32))
    with jax.enable_x64(True):
        long = jax.jit(flow.clock)(*(jnp.full(1, float(v)) for v in ends), jnp.asarray(places))
    for a, b in zip(short, long, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


@pytest.mark.slow
def test_a_likelihood_converges_with_fourth_order_and_beats_runge_kutta_at_equal_calls():
    """Against 400 steps of RK4, exact divergence of a mixture in 24 dimensions; half of the calls have a divergence."""
    sde, means = VP(), 0.5 * np.random.default_rng(0).normal(size=(3, 24))
    model = GaussianMixture(means - means.mean(0), 0.2)
    with jax.enable_x64(True):
        x = model.sample(jax.random.key(1), 4)
        keys = jax.random.split(jax.random.key(2), 4)

        def nats(solver, steps):
            config = LikelihoodConfig(solver=solver, steps=steps, divergence="exact")
            found = jax.jit(lambda x: log_likelihood(model.score(sde), sde, x, keys, config))(x)
            assert np.all(np.asarray(found.network_calls) == {"rk4": 4, "adams": 2}[solver] * steps)
            return np.asarray(found.nats)

        tight = nats("rk4", 400)
        rk4, *adams = (
            np.max(np.abs(nats(*v) - tight)) for v in (("rk4", 20), ("adams", 40), ("adams", 60), ("adams", 120))
        )
    assert adams[0] < rk4
    assert 3 < np.log2(adams[1] / adams[2]) < 5.5, (rk4, adams)
