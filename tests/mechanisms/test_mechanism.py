"""Sensitivities, events, refusals, noise laws and keys of the float mechanisms; the internal study curve."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import noise
from diffusion_privacy.mechanisms.mechanism import (
    GaussianMechanism,
    LaplaceMechanism,
    MetricMechanism,
    many_at_scale,
)
from diffusion_privacy.mechanisms.relation import (
    REPLACE_RECORD,
    Neighbours,
    Relation,
    parse_relation,
    replace_person,
)
from diffusion_privacy.mechanisms.release import noised
from diffusion_privacy.mechanisms.study import latent_curve_for_internal_study
from diffusion_privacy.training.rng import GRID_BITS, signs_and_uniforms

dp_accounting = pytest.importorskip("dp_accounting")


def test_sensitivity_is_the_diameter_of_the_ball():
    assert GaussianMechanism(3.0, 1.0).sensitivity(REPLACE_RECORD) == 6.0
    assert LaplaceMechanism(3.0, 1.0).sensitivity(REPLACE_RECORD) == 6.0
    assert GaussianMechanism(3.0, 1.0).sensitivity(replace_person(4)) == 12.0
    assert LaplaceMechanism(3.0, 1.0).sensitivity(replace_person(4)) == 24.0
    assert MetricMechanism(1.0, "l1").sensitivity(REPLACE_RECORD) == math.inf


@pytest.mark.parametrize("radius", [0.5, 28.0])
def test_calibrated_noise_has_twice_the_radius_in_it(radius):
    gaussian = GaussianMechanism.calibrated(1.0, 1e-5, radius, REPLACE_RECORD, 1000)
    assert gaussian.sigma == pytest.approx(3.731 * 2 * radius, rel=1e-3)
    assert gaussian.event(REPLACE_RECORD).noise_multiplier == pytest.approx(3.731, rel=1e-3)
    laplace = LaplaceMechanism.calibrated(2.0, radius, REPLACE_RECORD)
    assert laplace.scale == radius
    assert laplace.event(REPLACE_RECORD).noise_multiplier == 0.5


def test_person_level_noise_covers_all_records_of_a_person():
    one = GaussianMechanism.calibrated(1.0, 1e-5, 1.0, REPLACE_RECORD, 1000)
    four = GaussianMechanism.calibrated(1.0, 1e-5, 1.0, replace_person(4), 1000)
    assert four.sigma == pytest.approx(2 * one.sigma)
    assert LaplaceMechanism.calibrated(1.0, 1.0, replace_person(4)).scale == 8.0


@pytest.mark.parametrize("relation", [None, "replace-record-same-public-condition", 2])
def test_unspecified_relation_is_refused(relation):
    with pytest.raises(InputError, match="relation"):
        GaussianMechanism(1.0, 1.0).sensitivity(relation)
    with pytest.raises(InputError, match="relation"):
        LaplaceMechanism(1.0, 1.0).event(relation)
    with pytest.raises(InputError, match="relation"):
        MetricMechanism(1.0, "l2").event(relation)
    with pytest.raises(InputError, match="relation"):
        GaussianMechanism.calibrated(1.0, 1e-5, 1.0, relation, 1000)


def test_relations_are_parsed_by_name_only():
    assert parse_relation("replace-record-same-public-condition") == REPLACE_RECORD
    for bad in ("", "add-or-remove-one"):
        with pytest.raises(InputError, match="relation"):
            parse_relation(bad)
    for bad_group in (0, -1, True, 1.5):
        with pytest.raises(InputError, match="records_per_person"):
            Relation(Neighbours.SAME_CONDITION, bad_group)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_unusable_scales_are_refused(bad):
    for build in (
        lambda: GaussianMechanism(1.0, bad),
        lambda: GaussianMechanism(bad, 1.0),
        lambda: LaplaceMechanism(1.0, bad),
        lambda: LaplaceMechanism.calibrated(bad, 1.0, REPLACE_RECORD),
        lambda: MetricMechanism(bad, "l1"),
        lambda: GaussianMechanism.calibrated(bad, 1e-5, 1.0, REPLACE_RECORD, 10),
    ):
        with pytest.raises(InputError):
            build()


def test_delta_of_one_is_refused():
    with pytest.raises(InputError, match="delta"):
        GaussianMechanism.calibrated(1.0, 1.0, 1.0, REPLACE_RECORD, 1000)


@pytest.mark.parametrize(
    "mechanism", [GaussianMechanism(1.0, 2.0), LaplaceMechanism(1.0, 2.0), MetricMechanism(1.0, "l2")]
)
def test_a_batch_is_refused(mechanism):
    with pytest.raises(ValueError, match="one record"):
        mechanism(jax.random.key(0), jnp.zeros((3, 2)))


def test_unit_noise_follows_its_law():
    # Kolmogorov-Smirnov at 50,000 draws (metric: 500), each rejected with probability 1e-6 when right.
    keys = jax.random.split(jax.random.key(0), 500)
    gaussian = np.asarray(jax.jit(jax.vmap(lambda k: noise.unit_gaussian(k, 100)))(keys)).ravel()
    laplace = np.asarray(jax.jit(jax.vmap(lambda k: noise.unit_laplace(k, 100)))(keys)).ravel()
    assert stats.kstest(gaussian, "norm").pvalue > 1e-6
    assert stats.kstest(laplace, "laplace").pvalue > 1e-6
    lengths = np.linalg.norm(np.asarray(jax.jit(jax.vmap(lambda k: noise.unit_metric_l2(k, 5)))(keys)), axis=1)
    assert stats.kstest(lengths, stats.gamma(5).cdf).pvalue > 1e-6


@pytest.mark.parametrize(
    "mechanism", [GaussianMechanism(2.0, 3.7), LaplaceMechanism(2.0, 0.6), MetricMechanism(0.5, "l1")]
)
def test_a_release_adds_noise_of_the_scale_it_states(mechanism):
    # Fresh noise through the very function that releases: Kolmogorov-Smirnov at 40,000 draws, rejected with probability
    # 1e-7 when right. Two thirds of the scale move the law by .08, 16 deviations; one key for all records leaves 50.
    drawn = noised(mechanism, jnp.zeros((800, 50))).ravel() / mechanism.noise_scale
    law = "norm" if mechanism.name == "gaussian" else "laplace"
    # What was rounded is spread over its cell again.
    cell = 2.0 ** (np.floor(np.log2(mechanism.noise_scale)) - GRID_BITS) / mechanism.noise_scale
    spread = np.random.default_rng(0).uniform(-0.5, 0.5, drawn.size) * cell
    assert stats.kstest(drawn + spread, law).pvalue > 1e-7


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_the_length_of_metric_noise_has_all_of_its_tail(monkeypatch):
    """At the smallest uniforms each of D exponentials is 44; a Gamma law made of normal draws ends at 22 for D = 1."""
    least = lambda key, dim: (jnp.ones(dim), jnp.full(dim, 2.0**-64, jnp.float32))  # noqa: E731
    monkeypatch.setattr(noise, "signs_and_uniforms", least)
    for dim in (1, 4):
        length = float(jnp.linalg.norm(noise.unit_metric_l2(jax.random.key(0), dim)))
        assert length == pytest.approx(64 * np.log(2) * dim, rel=1e-3)


def test_tails_are_not_cut():
    # The map from bits to noise at the smallest uniforms that its bits can make.
    u = jnp.asarray([2.0**-63, 2.0**-40, 2.0**-24], jnp.float32)
    reach = -np.asarray(jax.scipy.special.ndtri(0.5 * u))
    np.testing.assert_allclose(reach, stats.norm.isf(0.5 * np.asarray(u, np.float64)), rtol=1e-5)


def test_the_smallest_uniform_is_that_of_63_bits(monkeypatch):
    """44 scales of the Laplace law and 9 deviations of the normal one; half of the bits would end at 22 and 6."""
    for word, u in ((0, 2.0**-64), (2**32 - 1, 1.0)):
        monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype, word=word: jnp.full(shape, word, dtype))
        np.testing.assert_array_equal(signs_and_uniforms(jax.random.key(0), 2)[1], np.float32(u))


@pytest.mark.slow
def test_laplace_passes_where_23_bits_end():
    # 2^27 exponentials pass 17 scales with probability 0.996; 23-bit uniforms end at 15.9.
    longest = jax.jit(lambda keys: jax.lax.map(lambda k: jnp.max(jnp.abs(noise.unit_laplace(k, 2**20))), keys).max())(
        jax.random.split(jax.random.key(1), 128)
    )
    assert 16.0 < float(longest) < 44.0


def test_metric_noise_keeps_its_promise_on_a_grid():
    # Density ratio e^{rate·distance}: histogram of the L1 mechanism at two latents a distance 1 apart.
    mechanism = MetricMechanism(rate=1.0, metric="l1")
    keys = jax.random.split(jax.random.key(0), 400_000)
    at = jax.jit(lambda keys, z: jax.vmap(lambda k: mechanism(k, z)[0])(keys))
    one = np.histogram(at(keys, jnp.zeros(1)), bins=np.linspace(-3, 4, 15))[0]
    two = np.histogram(at(jax.random.split(jax.random.key(1), 400_000), jnp.ones(1)), bins=np.linspace(-3, 4, 15))[0]
    # Each count has a relative error below 1.5 %; 6 deviations.
    ratio = np.log(one / two)
    assert np.abs(ratio).max() < 1.0 + 0.12
    assert np.abs(ratio).max() > 0.9
    assert isinstance(mechanism.event(REPLACE_RECORD), dp_accounting.NonPrivateDpEvent)
    assert "not ε-DP" in mechanism.statement()


def test_fresh_keys_have_64_bits_and_never_repeat():
    words = np.asarray(jax.random.key_data(noise.fresh_keys(2000)))
    assert words.shape == (2000, 2)
    assert len({tuple(row) for row in words}) == 2000
    assert (words.max(axis=0) > 2**31).all()  # fails with probability 2^-4000
    first, second = noise.fresh_key(), noise.fresh_key()
    assert not np.array_equal(jax.random.key_data(first), jax.random.key_data(second))


def test_byte_streams_are_functions_of_a_long_key_only():
    one, two = noise.keyed_bytes(b"a" * 32), noise.keyed_bytes(b"a" * 32)
    assert one(16) == two(16)
    assert one(16) != one(16)
    draw = noise.keyed_bytes(b"b" * 32)
    # Every number of a record takes draws of its own; two that were alike would carry the same noise.
    assert len({draw(16) for _ in range(2000)}) == 2000
    with pytest.raises(ValueError, match="32 bytes"):
        noise.keyed_bytes(b"seed 0")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GaussianMechanism, LaplaceMechanism])
def test_whole_curve_equals_point_by_point(kind):
    keys = jax.random.split(jax.random.key(0), 5)
    z = 10 * jax.random.normal(jax.random.key(1), (5, 7))
    scales = [1.0, 30.0]
    curve = jax.jit(lambda s, k, z: latent_curve_for_internal_study(kind, 2.0, s, k, z))(jnp.asarray(scales), keys, z)
    assert curve.shape == (2, 5, 7)
    for row, scale in zip(curve, scales, strict=True):
        np.testing.assert_allclose(row, jax.jit(jax.vmap(kind(2.0, scale)))(keys, z), rtol=1e-5, atol=1e-6)
    # Why it must not be released: two points give the record back, to the rounding of both (1/16, and 1 at scale 30).
    unit = (curve[1] - curve[0]) / 29.0
    np.testing.assert_allclose(curve[0] - unit, jax.jit(jax.vmap(kind(2.0, 1e-30)))(keys, z), atol=0.1)
    with pytest.raises(InputError, match="mechanism"):
        latent_curve_for_internal_study(MetricMechanism, 2.0, jnp.ones(1), keys, z)


def test_one_compiled_program_serves_every_noise_scale():
    traced = []

    @dataclasses.dataclass(frozen=True)
    class Counting(GaussianMechanism):
        def at_scale(self, key, z, scale):
            traced.append(scale)
            return super().at_scale(key, z, scale)

    keys, z = jax.random.split(jax.random.key(0), 4), jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    for sigma in (0.5, 2.0, 7.0):
        mechanism = Counting(1.5, sigma)
        assert mechanism.unscaled() == Counting(1.5, 1.0)
        found = many_at_scale(mechanism.unscaled(), mechanism.noise_scale, keys, z)
        assert len(traced) == 1
        step = 2.0 ** (math.floor(math.log2(sigma)) - 8)
        # The same draws as one record at a time; a sum at the edge of a rounding cell may fall to either side.
        for key, row, made in zip(keys, z, found, strict=True):
            np.testing.assert_allclose(GaussianMechanism(1.5, sigma)(key, row), made, atol=1.01 * step)
    metric = MetricMechanism(0.25, "l1")
    np.testing.assert_allclose(
        metric.unscaled().at_scale(keys[0], z[0], metric.noise_scale), metric(keys[0], z[0]), atol=0.02
    )
    assert LaplaceMechanism(1.5, 3.0).unscaled() == LaplaceMechanism(1.5, 1.0)
