"""The map of a logistic mixture against closed forms, and its inverse where Newton's method alone fails."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow_table import fast_jit

from diffusion_privacy.flows import mixture as module
from diffusion_privacy.flows.mixture import LogisticMixture
from diffusion_privacy.flows.spline import arctan

MIXTURE = LogisticMixture(3)


def numbers(weights, means, log_scales, gain=0.0, shift=0.0, mixture=MIXTURE):
    """The unconstrained numbers of a mixture with these parameters."""

    def raw(values, most):
        return most * np.arctanh(np.asarray(values) / most)

    start = np.linspace(-mixture.spread, mixture.spread, mixture.components)
    # A softmax takes any common factor away: centred, the logarithms of the weights fit into the clamp.
    odds = np.log(weights) - np.mean(np.log(weights))
    parts = [raw(odds, 2 * mixture.clamp), np.asarray(means) - start, raw(-np.asarray(log_scales), mixture.clamp)]
    return [jnp.asarray(v) for v in np.concatenate([*parts, raw([gain], mixture.clamp), [shift]])]


def test_equals_the_logit_of_the_mixture_in_float64():
    weights, means, scales = np.array([0.5, 0.2, 0.3]), np.array([-1.0, 0.5, 3.0]), np.array([0.5, 1.0, 2.0])
    x = np.linspace(-4.0, 6.0, 41)
    with jax.enable_x64(True):
        params = [jnp.full(x.shape, p) for p in numbers(weights, means, np.log(scales), 0.4, -0.7)]
        y, log_slope = MIXTURE.forward(params, jnp.asarray(x))
    z = (x[:, None] - means) / scales
    cdf, density = (weights / (1 + np.exp(-z))).sum(1), (weights / scales / (2 + np.exp(z) + np.exp(-z))).sum(1)
    np.testing.assert_allclose(y, np.exp(0.4) * (np.log(cdf / (1 - cdf)) + MIXTURE.floor * x) - 0.7, rtol=1e-10)
    np.testing.assert_allclose(log_slope, 0.4 + np.log(density / cdf / (1 - cdf) + MIXTURE.floor), rtol=1e-8)


def test_zeros_give_an_odd_map_close_to_the_identity_whose_components_part():
    x = jnp.linspace(-3.0, 3.0, 31)
    zeros = [jnp.zeros(x.shape)] * MIXTURE.num_parameters
    y, log_slope = MIXTURE.forward(zeros, x)
    np.testing.assert_allclose(y, -y[::-1], atol=1e-6)
    assert float(jnp.max(jnp.abs(log_slope))) < 0.25
    gradient = jax.grad(lambda p: jnp.sum(jnp.square(MIXTURE.forward(p, x + 0.3)[0])))(zeros)
    assert len({round(float(jnp.sum(g)), 4) for g in gradient[3:6]}) == 3  # means


@pytest.mark.parametrize("far", [30.0, 1e2, 1e4, 1e6])
def test_tails_are_straight_lines_with_finite_gradients(far):
    # Far to the right log(1 − F) is that of the component which falls slowest: here scale 2, weight .3, mean 3.
    params = numbers([0.5, 0.2, 0.3], [-1.0, 0.5, 3.0], np.log([0.5, 1.0, 2.0]))
    y, log_slope = MIXTURE.forward(params, jnp.asarray(far))
    np.testing.assert_allclose(y, (far - 3) / 2 - np.log(0.3) + MIXTURE.floor * far, rtol=2e-5)
    np.testing.assert_allclose(log_slope, np.log(1 / 2 + MIXTURE.floor), atol=2e-5)
    for method in (MIXTURE.forward, MIXTURE.inverse):
        for sign in (-1.0, 1.0):
            gradient = jax.grad(lambda p, v, method=method: sum(method(p, v)), (0, 1))(params, jnp.asarray(sign * far))
            assert all(bool(jnp.isfinite(g)) for g in jax.tree.leaves(gradient))


def test_the_slope_never_falls_below_its_floor_and_the_inverse_follows_between_far_modes():
    # Two modes 40 scales apart: logit F is flat to 1e-9 between them.
    params = [jnp.full(201, p, jnp.float32) for p in numbers([0.5, 1e-2, 0.5], [-10.0, -10.0, 10.0], np.log([0.5] * 3))]
    x = jnp.linspace(-20.0, 20.0, 201)
    y, log_slope = MIXTURE.forward(params, x)
    assert float(jnp.min(log_slope)) >= np.log(MIXTURE.floor) - 1e-6
    np.testing.assert_allclose(MIXTURE.inverse(params, y)[0], x, atol=2e-4)


@pytest.mark.parametrize("x", [20.0, 39.0, 45.0, 90.0])
def test_gradients_are_finite_where_the_nearest_component_is_light_and_far(x):
    # 1 − F would be .01·exp(−39) here, and its square no float32: training ended with it once.
    params = numbers([0.01, 0.495, 0.495], [0.0, -20.0, -20.0], np.zeros(3))
    gradient = jax.jit(jax.grad(lambda p, v: sum(MIXTURE.forward(p, v)), (0, 1)))(params, jnp.float32(x))
    assert all(bool(jnp.isfinite(g)) for g in jax.tree.leaves(gradient))


def draws(scale, count=20_000):
    """Random numbers of many mixtures, and points."""
    rng = np.random.default_rng(0)
    mixture = LogisticMixture(4)
    params = [jnp.asarray(scale * rng.normal(size=count), jnp.float32) for _ in range(mixture.num_parameters)]
    return mixture, params, jnp.asarray(3 * rng.normal(size=count), jnp.float32)


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_inverse_of_mixtures_of_every_shape(scale):
    mixture, params, x = draws(scale)
    y, log_slope = fast_jit(mixture.forward)(params, x)
    back, inverse_slope = fast_jit(mixture.inverse)(params, y)
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(inverse_slope, -log_slope, atol=2e-4)


def test_a_case_in_which_newton_inside_a_bracket_goes_in_circles():
    # From .689448 to 6.779277 and back for ever, each the end of a bracket, unless steps have to halve.
    weights, means = [0.9608834, 0.00660524, 0.00547163, 0.02703973], [-5.425139, 1.954096, -2.3047705, -2.109366]
    rates = np.exp([1.1863946, 0.6060031, -1.279546, 1.2853787])
    mixture = module._Mixture(*([jnp.asarray(v, jnp.float32) for v in part] for part in (weights, means, rates)))
    curve, target = LogisticMixture(4), jnp.float32(6.2518663)
    np.testing.assert_allclose(curve._curve(mixture, curve._root(mixture, target))[0], target, atol=1e-5)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_inverse_does_not_depend_on_the_batch_and_has_the_derivatives_of_the_inverse():
    mixture, params, x = draws(2.0, 50)
    y, log_slope = mixture.forward(params, x)
    inverse = jax.jit(mixture.inverse)
    alone = [inverse([p[i : i + 1] for p in params], y[i : i + 1])[0][0] for i in range(5)]
    np.testing.assert_array_equal(alone, inverse(params, y)[0][:5])

    def back(params, y):
        return jnp.sum(mixture.inverse(params, y)[0])

    by_params, by_y = jax.grad(back, (0, 1))(params, y)
    np.testing.assert_allclose(by_y, jnp.exp(-log_slope), rtol=1e-3)
    # x(p, y(p, x₀)) is constant: ∂x/∂p = −(∂y/∂p)/(∂y/∂x).
    expected = jax.grad(lambda p: jnp.sum(mixture.forward(p, x)[0] * jnp.exp(-log_slope)))(params)
    for found, wanted in zip(by_params, expected, strict=True):
        np.testing.assert_allclose(found, -wanted, atol=2e-3)


def test_a_point_that_is_no_number_ends():
    params = [jnp.zeros(2)] * MIXTURE.num_parameters
    x, _ = MIXTURE.inverse(params, jnp.asarray([jnp.nan, 0.5]))
    np.testing.assert_array_equal(np.isnan(x), [True, False])


@pytest.mark.parametrize("fields", [{"components": 1}, {"clamp": 0.0}, {"floor": 0.0}, {"spread": 0.0}])
def test_refuses_what_is_no_mixture(fields):
    with pytest.raises(ValueError, match="two components"):
        LogisticMixture(**fields)


def test_arctan_and_its_derivative_meet_the_library():
    x = np.concatenate([np.linspace(-4, 4, 40_001), np.geomspace(1e-30, 1e30, 2_001), [-np.inf, np.inf, 0.0]])
    x = x.astype(np.float32)
    exact = np.arctan(x.astype(np.float64))
    np.testing.assert_allclose(fast_jit(arctan)(x), exact, rtol=2e-7)
    finite = x[np.abs(x) < 1e15]
    np.testing.assert_allclose(jax.vmap(jax.grad(arctan))(finite), 1 / (1 + finite.astype(np.float64) ** 2), rtol=1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(arctan(jnp.asarray(0.3)), np.arctan(0.3), rtol=1e-15)
