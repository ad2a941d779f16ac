"""The attack against closed forms, the reference's faulty settings, and the right mechanism."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from diffusion_privacy.audits.linkage import linkage
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.clipping import clip_radius
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism, LaplaceMechanism
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD

DIM, GALLERY, RELEASED = 784, 1000, 400


@pytest.fixture(scope="module")
def latents():
    rng = np.random.default_rng(7)
    return rng.normal(size=(GALLERY, DIM)), rng.permutation(GALLERY)[:RELEASED]


def reference_release(z, epsilon, batch=16, seed=3):
    """The reference implementation: Δ = C = min(ε/2, 4), norm of the batch as a matrix, Laplace b = Δ/ε = ½."""
    rng = np.random.default_rng(seed)
    sensitivity = min(epsilon / 2, 4)
    parts = []
    for start in range(0, len(z), batch):
        part = z[start : start + batch]
        norm = np.linalg.norm(part, ord=1)
        parts.append(part * min(1.0, sensitivity / norm))
    return np.concatenate(parts) + rng.laplace(scale=sensitivity / epsilon, size=z.shape)


def release(mechanism, z, seed=4):
    keys = jax.random.split(jax.random.key(seed), len(z))
    return np.asarray(jax.jit(jax.vmap(mechanism))(keys, jnp.asarray(z, jnp.float32)))


@pytest.mark.parametrize(("epsilon", "least"), [(6.0, 0.95), (8.0, 0.98), (2.0, 0.05)])
def test_the_faulty_settings_are_found(latents, epsilon, least):
    z, truth = latents
    result = linkage(reference_release(z[truth], epsilon), z, truth)
    assert result.rates[1].lower > least
    assert result.p_value(1) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_right_mechanisms_are_at_chance(latents, metric):
    """At ε = 1, by the same test at 1e-6 that finds the faults.

    The link that remains (√D/√(1+σ²) = .13) raises the rates to 1.5e-3 at k = 1 and 1.4e-2 at k = 10, so that a false
    alarm (7 hits or more, 17 or more) has probability below 1e-4 in each of the eight checks.
    """
    z, truth = latents
    for mechanism in (
        GaussianMechanism.calibrated(1.0, 1e-5, clip_radius(DIM, "l2"), REPLACE_RECORD, RELEASED),
        LaplaceMechanism.calibrated(1.0, clip_radius(DIM, "l1"), REPLACE_RECORD),
    ):
        result = linkage(release(mechanism, z[truth]), z, truth, metric=metric)
        for k in (1, 10):
            assert result.p_value(k) > 1e-6, result.rates[k]


@pytest.mark.parametrize("sigma", [0.5, 2.0, 10.0])
def test_similarity_and_rate_are_those_of_the_closed_form(latents, sigma):
    """Mean cosine 1/√(1+σ²) up to O(1/D): 4.5 standard errors plus 1/D; false-alarm rate 7e-6.

    Top-1: E Φ(√D ρ + √(1−ρ²) x)^(M−1) with x ~ N(0, 1), whose asymptotics in D are good to 2 %; exact limits at 1e-5.
    """
    z, truth = latents
    released = z[truth] + sigma * np.random.default_rng(1).normal(size=(RELEASED, DIM))
    result = linkage(released, z, truth, level=1 - 1e-5)
    rho = 1 / math.sqrt(1 + sigma**2)
    assert abs(result.similarity - rho) < 4.5 * result.similarity_stderr + 1 / DIM
    at = math.sqrt(DIM) * rho
    power = GALLERY - 1

    def density(x):
        return stats.norm.pdf(x) * special.ndtr(at + math.sqrt(1 - rho**2) * x) ** power

    top = integrate.quad(density, -9, 9)[0]
    assert result.rates[1].lower - 0.02 <= top <= result.rates[1].upper + 0.02


def test_worked_by_hand():
    gallery = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [3.0, 3.0]])
    released = np.array([[2.0, 0.1], [1.0, 2.0], [0.0, -5.0]])
    cosine = linkage(released, gallery, np.array([0, 1, 2]), ks=(1, 2, 3, 4))
    # Row 1 points nearer to (3, 3) than to (0, 1); row 2 has cosine 0 with both horizontal vectors: a tie.
    assert cosine.ranks[:2].tolist() == [1, 2]
    assert cosine.ranks[2] in (1, 2)
    l2 = linkage(released, gallery, np.array([0, 1, 2]), ks=(1, 4), metric="l2")
    assert l2.ranks[:2].tolist() == [1, 1]
    assert l2.similarity == pytest.approx((math.hypot(1, 0.1) + math.hypot(1, 1) + math.hypot(1, 5)) / 3)
    spread = np.std([math.hypot(1, 0.1), math.hypot(1, 1), math.hypot(1, 5)], ddof=1)
    assert l2.similarity_stderr == pytest.approx(spread / math.sqrt(3))
    assert cosine.rates[4].hits == 3
    assert cosine.chance == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    assert cosine.p_value(4) == 1.0
    assert cosine.p_value(2) == pytest.approx(0.5**3)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_chunks_change_nothing_and_ranks_are_those_of_the_whole_matrix(metric):
    rng = np.random.default_rng(5)
    gallery, released, truth = rng.normal(size=(57, 6)), rng.normal(size=(31, 6)), rng.integers(0, 57, 31)
    whole = linkage(released, gallery, truth, metric=metric)
    chunked = linkage(released, gallery, truth, metric=metric, chunk=7)
    assert whole.ranks.tolist() == chunked.ranks.tolist()
    if metric == "l2":
        order = np.argsort(np.linalg.norm(released[:, None] - gallery, axis=2), axis=1)
    else:
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (released, gallery)]
        order = np.argsort(-unit[0] @ unit[1].T, axis=1)
    assert whole.ranks.tolist() == [1 + order[i].tolist().index(truth[i]) for i in range(31)]


def test_constants_and_copies_are_at_chance():
    """All ties: ranks are uniform. 2,000 records, gallery of 20: |z| < 4.5 for each k, false-alarm rate 7e-6."""
    truth = np.arange(2000) % 20
    for released, gallery in ((np.zeros((2000, 3)), np.eye(20, 3) + 1), (np.ones((2000, 3)), np.full((20, 3), 0.1))):
        result = linkage(released, gallery, truth, ks=(1, 10))
        for k in (1, 10):
            p = k / 20
            assert abs(result.rates[k].value - p) < 4.5 * math.sqrt(p * (1 - p) / 2000)


def test_bad_input_is_refused():
    z, truth = np.eye(3), np.arange(3)
    with pytest.raises(InputError, match=r"\[N, D\] and \[M, D\], got \(3, 3\) and \(3, 2\)"):
        linkage(z, z[:, :2], truth)
    with pytest.raises(InputError, match="gallery of 3"):
        linkage(z, z, truth + 1)
    with pytest.raises(InputError, match="released record 1"):
        linkage(z + np.diag([0, np.nan, 0]), z, truth)
    with pytest.raises(InputError, match="within 1 … 3"):
        linkage(z, z, truth)
    with pytest.raises(InputError, match="metric"):
        linkage(z, z, truth, ks=(1,), metric="l1")
    with pytest.raises(InputError, match="k is 2"):
        linkage(z, z, truth, ks=(1,)).p_value(2)
