"""Attacks on models whose training set is known: worked by hand, blind where nothing was seen, sharp on a memoriser."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from oracles.atom_models import BrokenScore, atom_score
from oracles.gaussian_mixture import GaussianMixture

from diffusion_privacy.audits import attacks
from diffusion_privacy.audits.membership import attack_with
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.errors import InputError

SDE = VP()


def standard(x, t):
    """Score of x_0 ~ N(0, I) under VP: the marginal stays N(0, I), so ε(x, t) = σ(t) x."""
    return -x


def coefficients(t):
    t = jnp.float32(t)
    return float(SDE.alpha(t)), float(SDE.sigma(t))


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).normal(size=(6, 3, 2)).astype(np.float32)


def test_pia_by_hand(points):
    (_, s0), (a, s) = coefficients(SDE.t_min), coefficients(0.2)
    flat = points.reshape(6, -1)
    want = -abs(s0 - s * (a + s * s0)) * np.linalg.norm(flat, ord=4, axis=1)
    np.testing.assert_allclose(attacks.pia(standard, SDE, points), want, rtol=1e-4)
    # PIAN: ε₀ points along x with mean magnitude √(2/π).
    unit = flat * (6 * math.sqrt(2 / math.pi) / np.abs(flat).sum(axis=1, keepdims=True))
    want = -np.linalg.norm(unit - s * (a * flat + s * unit), ord=4, axis=1)
    np.testing.assert_allclose(attacks.pia(standard, SDE, points, normalise=True), want, rtol=1e-4)


def test_secmi_by_hand(points):
    """A deterministic step from s to u multiplies by cos(θ_u − θ_s), sin θ = σ."""
    steps, t = 3, 0.5
    grid = SDE.t_min + np.arange(steps + 2) * (t - SDE.t_min) / steps
    angle = np.array([math.asin(coefficients(u)[1]) for u in grid])
    turn = np.cos(np.diff(angle))
    reached = points.reshape(6, -1) * np.prod(turn[:steps])
    want = -((1 - turn[-1] ** 2) ** 2) * np.sum(reached**2, axis=1)
    np.testing.assert_allclose(attacks.secmi(standard, SDE, points, t=t, steps=steps), want, rtol=2e-3)


def test_loss_by_hand(points):
    """ε(x_t) = σ(αx + σε): the error is σαx − (1 − σ²)ε with mean square α²(σ²‖x‖²/D + α²).

    400 draws, 6 records, 4.5 deviations: false-alarm rate 4e-5.
    """
    a, s = coefficients(0.3)
    got = attacks.loss(standard, SDE, points, times=(0.3,), draws=400)
    mean_square = np.mean(points.reshape(6, -1) ** 2, axis=1)
    # Variance of the mean over D = 6 normals with means m and deviation α²: (2α⁸ + 4α⁴ Σm²/D)/D.
    want = a**2 * (s**2 * mean_square + a**2)
    deviation = np.sqrt((2 * a**8 + 4 * a**4 * (s * a) ** 2 * mean_square) / 6 / 400)
    assert np.all(np.abs(-got - want) < 4.5 * deviation)


def test_likelihood_by_hand(points):
    want = -0.5 * np.sum(points.reshape(6, -1) ** 2, axis=1) - 3 * math.log(2 * math.pi)
    exact = dataclasses.replace(attacks.LIKELIHOOD, divergence="exact", steps=30)
    np.testing.assert_allclose(attacks.likelihood(standard, SDE, points, config=exact), want, atol=2e-3)


def test_chunks_change_nothing(points):
    whole = attacks.loss(standard, SDE, points)
    np.testing.assert_allclose(attacks.loss(standard, SDE, points, chunk=1), whole, rtol=1e-5)
    np.testing.assert_allclose(attacks.loss(standard, SDE, points[:4]), whole[:4], rtol=1e-5)


def normal_log_prob(shift, x, cond):
    return -0.5 * jnp.sum((x - shift - jnp.sum(cond, axis=1, keepdims=True)) ** 2, axis=1)


def test_flow_scores_are_its_log_density():
    x = np.random.default_rng(1).normal(size=(7, 2)).astype(np.float32)
    cond = np.arange(7, dtype=np.float32)[:, None]
    log_prob = Partial(normal_log_prob, jnp.float32(1.0))
    np.testing.assert_allclose(attacks.flow(log_prob, x), -0.5 * np.sum((x - 1) ** 2, axis=1), rtol=1e-6)
    want = -0.5 * np.sum((x - 1 - cond) ** 2, axis=1)
    np.testing.assert_allclose(attacks.flow(log_prob, x, cond, chunk=2), want, rtol=1e-5)


COUNT, DIM = 150, 8


@pytest.mark.parametrize("name", ["loss", "pia", "secmi", pytest.param("likelihood", marks=pytest.mark.slow)])
def test_attacks_are_blind_without_and_sharp_with_memory(name):
    """Members and others are 150 each of one law.

    The unseeing model knows the law alone: |AUC − ½| < 4.5 standard errors, false-alarm rate 7e-6 a case. The
    memoriser is the 150-atom mixture of the members (deviation .01).
    """
    law = GaussianMixture(np.random.default_rng(2).normal(size=(4, DIM)), 0.7)
    draws = np.asarray(law.sample(jax.random.key(3), 2 * COUNT), np.float32)
    members, others = draws[:COUNT], draws[COUNT:]
    attack = attacks.ATTACKS[name]
    unseeing = attack_with(name, lambda x: attack(law.score(SDE), SDE, x), members, others, rates=(0.1,))
    assert abs(unseeing.auc.value - 0.5) < 4.5 * math.sqrt((2 * COUNT + 1) / (12 * COUNT**2))
    model = atom_score(SDE, members)
    memoriser = attack_with(name, lambda x: attack(model, SDE, x), members, others, rates=(0.1,))
    assert memoriser.auc.value > 0.98, memoriser.auc
    assert memoriser.auc.lower > 0.9
    assert memoriser.points[0].tpr.lower > 0.9


def test_a_flow_that_saw_its_members_is_caught():
    """The NLL attack on the density of the 150 members (deviation .05) and on the law they come from."""
    law = GaussianMixture(np.random.default_rng(4).normal(size=(4, DIM)), 0.7)
    draws = np.asarray(law.sample(jax.random.key(5), 2 * COUNT), np.float32)
    fitted = GaussianMixture(draws[:COUNT], 0.05)
    for model, least, most in ((fitted, 0.999, 1.0), (law, 0.35, 0.65)):
        result = attack_with(
            "flow",
            lambda x, model=model: attacks.flow(lambda rows, cond: model.log_prob_data(rows), x),
            draws[:COUNT],
            draws[COUNT:],
            rates=(0.1,),
        )
        assert least <= result.auc.value <= most


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: attacks.loss(standard, SDE, x * np.nan), "loss: record 0 is not finite"),
        (lambda x: attacks.loss(standard, SDE, x, times=()), "at least one time"),
        (lambda x: attacks.loss(standard, SDE, x, times=(1.5,)), r"within \[0.001, 1\], got 1.5"),
        (lambda x: attacks.pia(standard, SDE, x, power=0.5), "pia.power"),
        (lambda x: attacks.secmi(standard, SDE, x, t=1.0), r"secmi.t \+ one step"),
        (lambda x: attacks.secmi(standard, SDE, x, steps=0), "secmi.steps"),
        (lambda x: attacks.pia(BrokenScore(0.1), SDE, x), "pia: the model gives NaN for record 0"),
        (lambda x: attacks.flow(lambda rows, cond: rows[:, 0, 0] * jnp.nan, x), "flow: the model gives NaN"),
        (lambda x: attacks.flow(standard, x, np.zeros((2, 1))), "flow.cond"),
    ],
)
def test_bad_input_is_refused(points, call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(points)
    assert "\n" not in str(caught.value)
