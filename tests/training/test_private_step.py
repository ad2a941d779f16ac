"""Private steps against a loop in plain numpy, on 1 and 4 devices; their noise; and faults that must be seen."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from private_toys import RECORDS, Bench, ConvTask, PullTask, ToyRecords, bench, plan_of, private_config
from scipy import stats
from training_toys import ToyBatches

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import private_step, sharding
from diffusion_privacy.training.gradients import CLIP_MARGIN
from diffusion_privacy.training.rng import GRID_BITS

CLIP = 0.5


one_gradient = jax.jit(jax.grad(lambda params, row, key: ConvTask().loss(params, row, key)[0][0]))


def numpy_loop(params, rows: np.ndarray, source: ToyRecords, step: int, clip: float, augmentations: int = 1):
    """Σ clip(gᵢ), one record at a time, one device, no batch: the definition."""
    key = jax.random.fold_in(jax.random.key(5), step)
    keys = [key] if augmentations == 1 else [jax.random.fold_in(key, k) for k in range(augmentations)]
    total = jax.tree.map(np.zeros_like, jax.tree.map(np.asarray, params))
    for i in rows:
        parts = [one_gradient(params, source.gather(np.array([i])), k) for k in keys]
        mean = jax.tree.map(lambda *g: np.mean([np.asarray(a, np.float64) for a in g], axis=0), *parts)
        norm = math.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(mean)))
        scale = min(1.0, clip * (1 - CLIP_MARGIN) / norm)
        total = jax.tree.map(lambda t, g, s=scale: t + s * g, total, mean)
    return total


def draw(at: Bench, rows: np.ndarray, source: ToyRecords) -> dict:
    """What accumulates over the pieces of one draw, summed over devices; the metrics by their names."""
    steps = at.steps
    found = {}

    class Fixed:
        def sample(self, step, records, probability):
            return rows

        def noise_keys(self, step, count):
            return np.zeros((count, 2), np.uint32)

    def keep(state, totals, carry, *rest):
        whole = jax.tree.map(jnp.add, carry.gradients, carry.lost)
        found["sum"] = jax.tree.map(lambda leaf: np.asarray(leaf).sum(axis=0), whole)
        found.update({name: float(np.sum(value)) for name, value in carry.metrics.items()})
        zeros = sharding.put_batch(jax.tree.map(np.zeros_like, carry), steps._mesh)
        return state, totals, zeros, np.zeros(2)

    before, steps.finish, kept = steps.finish, keep, steps._secret
    steps._secret = Fixed()
    at.steps.advance(at.state, at.totals, 0, 0)
    steps.finish, steps._secret = before, kept
    return found


def close(a, b, tolerance=2e-6) -> bool:
    return all(np.allclose(x, y, atol=tolerance) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_sum_is_that_of_a_loop_over_records_however_many_are_drawn(devices):
    """Draws of none, of less than a piece, and of several pieces, in one compiled program; convolution gradients."""
    source, config = ToyRecords(), private_config()
    at = bench(ConvTask(), source, config, devices)
    programs = None
    for rows in (np.arange(RECORDS), np.array([2]), np.array([], np.int64), np.array([0, 3, 9])):
        got = draw(at, rows, source)
        want = numpy_loop(at.state.params, rows, source, 0, CLIP)
        assert close(got["sum"], want)
        assert got["sampled"] == len(rows)
        programs = at.steps.accumulate._cache_size() if programs is None else programs
        assert at.steps.accumulate._cache_size() == programs
    # Planted: one norm for the whole draw, or no clipping at all.
    rows = np.arange(RECORDS)
    raw = numpy_loop(at.state.params, rows, source, 0, 1e9)
    norm = math.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(raw)))
    got = draw(at, rows, source)["sum"]
    assert not close(got, raw, 1e-2)
    assert not close(got, jax.tree.map(lambda leaf: leaf * min(1, CLIP / norm), raw), 1e-2)


@dataclasses.dataclass(frozen=True)
class SamePull(PullTask):
    """All records pull one coordinate."""

    def loss(self, params, batch, key):
        return super().loss(params, {"position": 0 * batch["position"]}, key)


@dataclasses.dataclass(frozen=True)
class Bare(ToyRecords):
    """Records of which nothing but their number is asked."""

    def gather(self, chosen):
        return {"position": np.asarray(chosen, np.int32)}


def test_thousands_of_records_are_summed_to_one_rounding():
    """Added up plainly, the sum would be off by four hundredths of the norm to which each record is cut."""
    source = Bare(2500)
    at = bench(SamePull(1), source, private_config(p_clip_norm=0.3, p_micro_batch=1))
    many, one = (draw(at, np.arange(count), source)["sum"]["w"][0] for count in (2500, 1))
    assert float(many) == pytest.approx(2500 * float(one), rel=2.0**-24)


def test_what_a_record_draws_does_not_depend_on_the_default_generator():
    source = ToyRecords()
    at = bench(ConvTask(), source, private_config())
    rows = np.array([0, 3])
    with jax.default_prng_impl("rbg"):
        got = draw(at, rows, source)
    assert close(got["sum"], numpy_loop(at.state.params, rows, source, 0, CLIP))


@pytest.mark.slow
def test_a_record_moves_the_sum_by_at_most_the_clip_and_no_other_record():
    source, config = ToyRecords(), private_config()
    at = bench(ConvTask(), source, config)
    whole, without = (draw(at, rows, source)["sum"] for rows in (np.arange(RECORDS), np.arange(RECORDS - 1)))
    alone = draw(at, np.array([RECORDS - 1]), source)["sum"]
    assert close(jax.tree.map(np.subtract, whole, without), alone)
    for i in range(RECORDS):
        one = draw(at, np.array([i]), source)["sum"]
        assert math.sqrt(sum(np.sum(leaf.astype(float) ** 2) for leaf in jax.tree.leaves(one))) <= CLIP


@pytest.mark.slow
def test_augmentations_are_averaged_before_clipping():
    source, config = ToyRecords(), private_config(p_augmentations=3)
    at = bench(ConvTask(), source, config)
    rows = np.array([1, 4])
    assert close(draw(at, rows, source)["sum"], numpy_loop(at.state.params, rows, source, 0, CLIP, 3))


@pytest.mark.slow
def test_a_record_that_is_not_finite_counts_as_zero_and_stops_nothing():
    source = ToyRecords(bad=3)
    at = bench(ConvTask(), source, private_config())
    got, rest = (draw(at, rows, source) for rows in (np.arange(RECORDS), np.delete(np.arange(RECORDS), 3)))
    assert close(got["sum"], rest["sum"])
    assert np.isfinite(got["loss"])


# --- noise ------------------------------------------------------------------------------------------------------------

SIZE = 20_000


def has_noise(gradient: np.ndarray, multiplier: float, clip: float, expected: float) -> bool:
    """Whether ``gradient``, of records that pull nothing, is N(0, (σ/L)²), σ = multiplier·C.

    Chi-square on its variance and a normal test on its mean, together wrong once in 10⁶ for right noise; 20,000 numbers
    tell deviations that differ by 4 %.
    """
    unit = gradient.ravel().astype(float) * expected / (multiplier * clip)
    n = unit.size
    low, high = stats.chi2.ppf([2.5e-7, 1 - 2.5e-7], n)
    return low < np.sum(unit**2) < high and abs(unit.sum()) / math.sqrt(n) < stats.norm.isf(2.5e-7)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_noise_is_as_large_as_accounted_for_and_faults_are_rejected(devices):
    source = ToyRecords(num_records=8)
    config = private_config(beta1=0.0, p_clip_norm=0.25, p_noise_multiplier=3.0)
    at = bench(PullTask(SIZE, 0.0), source, config, devices)
    draws = []
    for step in range(2):
        at.advance(step)
        draws.append(at.gradient()["w"])
    assert has_noise(draws[0], 3.0, 0.25, 4)
    assert has_noise((draws[0] - draws[1]) / math.sqrt(2), 3.0, 0.25, 4), "each step has its own"
    # A Gaussian law, tails included: largest of 40,000 (Kolmogorov-Smirnov, wrong once in 10⁶), spread over the cells
    # of the grid: σ = .75 lies above a half.
    spread = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * SIZE) * 0.5 * 2.0**-GRID_BITS
    assert stats.kstest((np.concatenate(draws) * 4 + spread) / 0.75, "norm").pvalue > 1e-6
    # Planted: not scaled by the clip norm; 2/3 and 3/2 of it; a noise of its own on each of 4 devices.
    for fault in (1 / 0.25, 2 / 3, 3 / 2, 2.0):
        assert not has_noise(draws[0] * fault, 3.0, 0.25, 4)
    at.steps._scale = at.steps._scale / 0.25
    at.advance(2)
    assert not has_noise(at.gradient()["w"], 3.0, 0.25, 4)


@pytest.mark.slow
def test_division_is_by_the_expected_size_not_by_the_drawn_one():
    source = ToyRecords(num_records=8)
    config = private_config(beta1=0.0, p_noise_multiplier=1e-3)
    at = bench(PullTask(8), source, config)
    plan = plan_of(config, source)
    for step in range(3):
        row = at.advance(step)
        drawn = at.steps._secret.sample(step, 8, plan.sampling_probability)
        want = np.zeros(8)
        want[drawn] = -CLIP * (1 - CLIP_MARGIN) / 4
        np.testing.assert_allclose(at.gradient()["w"], want, atol=1e-3)
        assert row["sampled"] == len(drawn)
        assert row["clipped"] == (1.0 if len(drawn) else 0.0)


def test_batches_that_are_not_of_single_records_are_refused():
    with pytest.raises(InputError, match="stream whose batches are made of single records"):
        private_step.require_source(ToyBatches())
