"""FLIPD on models whose dimension is known: Gaussians on a subspace, atoms, a mixture of both."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from oracles.atom_models import BrokenScore, atom_score

from diffusion_privacy.audits.dimension import flipd
from diffusion_privacy.diffusion.sde import SDES, VP
from diffusion_privacy.errors import InputError

DIM = 10


@dataclasses.dataclass(frozen=True)
class Subspace:
    """Score of x_0 = N(0, diag(variances)): ``score(variances[d], x, t)``; a variance of 0 is a missing direction."""

    sde: object

    def __call__(self, variances, x, t):
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        flat = x.reshape(len(x), -1)
        return (-flat / (alpha**2 * variances + sigma**2)).reshape(x.shape)


def on_subspace(k):
    variances = np.r_[np.ones(k), np.zeros(DIM - k)].astype(np.float32)
    x = np.random.default_rng(k).normal(size=(6, DIM)).astype(np.float32) * np.sqrt(variances)
    return jnp.asarray(variances), x


@pytest.mark.parametrize(
    "name", ["vp", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(SDES) if name != "vp")]
)
def test_a_gaussian_of_k_dimensions_gives_k(name):
    """FLIPD(x, t) − k = −k v + v (1 − v) ‖x‖² with v = σ²/(α² + σ²): the formula at finite t, and k as t → 0."""
    sde = SDES[name]()
    t = max(0.01, sde.t_min)
    alpha, sigma = (float(f(jnp.float32(t))) for f in (sde.alpha, sde.sigma))
    v = sigma**2 / (alpha**2 + sigma**2)
    for k in (0, 3, DIM):
        variances, x = on_subspace(k)
        found = flipd(Partial(Subspace(sde), variances), sde, x, t=t)
        want = k - k * v + v * (1 - v) * np.sum(x**2, axis=1)
        np.testing.assert_allclose(found.value, want, atol=2e-3)
        assert np.all(np.abs(found.value - k) < max(v, 1e-4) * 40)
        np.testing.assert_array_equal(found.probe_stderr, 0)


def test_hutchinson_with_signs_is_exact_for_diagonal_jacobians():
    """vᵀJv = tr J for Rademacher v and diagonal J; a single probe has no standard error."""
    sde = VP()
    variances, x = on_subspace(4)
    score = Partial(Subspace(sde), variances)
    exact = flipd(score, sde, x, t=0.01)
    signs = flipd(score, sde, x, t=0.01, divergence="hutchinson", probes=1)
    np.testing.assert_allclose(signs.value, exact.value, atol=1e-3)
    assert np.isnan(signs.probe_stderr).all()


@pytest.mark.slow
def test_hutchinson_scatters_by_its_standard_error():
    """Gaussian probes: within 5 standard errors of the exact divergence for 6 records (4e-6 in all)."""
    sde = VP()
    variances, x = on_subspace(4)
    score = Partial(Subspace(sde), variances)
    normal = flipd(score, sde, x, t=0.01, divergence="hutchinson", probe="gaussian", probes=64, chunk=2)
    assert np.all(np.abs(normal.value - flipd(score, sde, x, t=0.01).value) < 5 * normal.probe_stderr)
    assert np.all(normal.probe_stderr > 0)


def test_the_error_of_probes_is_that_of_their_mean():
    """vᵀJv of Gaussian v has the variance 2 tr J², here at four probes. 2,000 records with σ²J = −1 in six directions:
    squared errors average to (2·6)/4 with a deviation of 2.4 %, and 12 % are five of those (once in 2 million)."""
    sde, (variances, x) = VP(), on_subspace(4)
    many = np.tile(x, (334, 1))[:2000]
    score = Partial(Subspace(sde), variances)
    found = flipd(score, sde, many, t=0.01, divergence="hutchinson", probe="gaussian", probes=4, chunk=500)
    alpha, sigma = (float(f(jnp.float32(0.01))) for f in (sde.alpha, sde.sigma))
    slopes = sigma**2 / (alpha**2 * np.asarray(variances) + sigma**2)
    assert np.mean(found.probe_stderr**2) == pytest.approx(2 * np.sum(slopes**2) / 4, rel=0.12)


def test_images_go_like_their_rows():
    sde = VP()
    variances, x = on_subspace(4)
    score = Partial(Subspace(sde), variances)
    flat = flipd(score, sde, x, t=0.01)
    np.testing.assert_allclose(flipd(score, sde, x.reshape(6, 5, 2, 1), t=0.01).value, flat.value, rtol=1e-5)


def test_a_memorised_record_has_no_direction_left():
    """40 atoms: 0 at an atom; the distant record that the model never saw is far from any dimension."""
    rng = np.random.default_rng(0)
    atoms, other = rng.normal(size=(40, DIM)), rng.normal(size=(5, DIM))
    score = atom_score(VP(), atoms, var=0.0)
    x = np.concatenate([atoms[:5], other]).astype(np.float32)
    found = flipd(score, VP(), x, t=0.02).value
    assert np.all(np.abs(found[:5]) < 0.1)
    assert np.all(np.abs(found[5:]) > DIM)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: flipd(BrokenScore(0.1), VP(), x), "no number for record 0"),
        (lambda x: flipd(BrokenScore(0.1), VP(), x * np.nan), "flipd: records: row 0"),
        (lambda x: flipd(BrokenScore(0.1), VP(), x, t=2.0), "flipd.t"),
        (lambda x: flipd(BrokenScore(0.1), VP(), x, divergence="guess"), "likelihood.divergence"),
        (lambda x: flipd(BrokenScore(0.1), VP(), x, probe="uniform"), "flipd.probe"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(np.ones((2, 3), np.float32))
