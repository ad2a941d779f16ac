"""h(t) and t': what they say of a memorised record, of a control, and of a detector that errs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import atom_models
from oracles.group_code import cyclic_orbit

from diffusion_privacy.anonymity import intervals, montecarlo, subspace, tprime
from diffusion_privacy.anonymity.tprime import HCurve, paper_t_prime, statistical_t_prime
from diffusion_privacy.diffusion import chain as chains
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.training.sharding import data_mesh

KEY = jax.random.key(0)


def curve_of(counts: list[int], draws: int, steps: int = 100) -> HCurve:
    """A curve at levels 10, 20, … with the first ``counts[i]`` draws detected."""
    levels = 10 * np.arange(1, len(counts) + 1)
    return HCurve(levels, levels / steps, np.arange(draws) < np.array(counts)[:, None], steps)


def test_a_curve_counts_and_remembers_where_it_looked() -> None:
    curve = curve_of([64, 32, 0], 64)
    np.testing.assert_array_equal(curve.hits, [64, 32, 0])
    assert curve.draws == 64
    assert curve.network_calls == 60 * 64
    assert curve.by_level.shape == (100,)
    assert list(np.flatnonzero(~np.isnan(curve.by_level))) == [9, 19, 29]
    assert curve.by_level[19] == 0.5
    lower, upper = curve.limits(0.9)
    assert (lower[1], upper[1]) == intervals.clopper_pearson(32, 64, 0.9)


def test_statistical_t_prime_is_the_highest_level_above_gamma() -> None:
    found = statistical_t_prime(curve_of([64, 60, 30, 1, 0], 64), gamma=0.01)
    assert found.value == pytest.approx(0.3)
    assert found.censored is None
    assert (found.gamma, found.level, found.comparisons) == (0.01, 0.95, 5)


def test_t_prime_says_when_it_lies_outside_the_levels() -> None:
    below = statistical_t_prime(curve_of([1, 0, 1], 64), gamma=0.02)
    assert (below.value, below.censored) == (None, "below")
    above = statistical_t_prime(curve_of([64, 60, 50], 64), gamma=0.02)
    assert (above.value, above.censored) == (pytest.approx(0.3), "above")
    for gamma in (-0.1, 1.0):
        with pytest.raises(ValueError, match="gamma must lie"):
            statistical_t_prime(curve_of([1], 64), gamma)


def test_the_correction_counts_every_level_looked_at() -> None:
    """9 of 64 exceed γ = .06 on their own and not among 30."""
    assert intervals.lower_limit(9, 64, 0.95) > 0.06 > intervals.lower_limit(9, 64, 1 - 0.05 / 30)
    assert statistical_t_prime(curve_of([9], 64), 0.06).value == pytest.approx(0.1)
    assert statistical_t_prime(curve_of([9] + [0] * 29, 64, steps=300), 0.06).value is None


def test_a_detector_at_gamma_raises_an_alarm_in_at_most_1_of_20_runs() -> None:
    """h = γ = .05 at 30 levels, 3,000 curves. Bound .05 plus 3.3 binomial standard errors. One level at a time, the
    alarm would sound in most runs; in paper mode almost always."""
    rng = np.random.default_rng(1)
    levels, alarms, single, paper = np.arange(1, 31), 0, 0, 0
    for _ in range(3000):
        curve = HCurve(levels, levels / 30, rng.random((30, 200)) < 0.05, 30)
        alarms += statistical_t_prime(curve, 0.05).value is not None
        single += bool(np.any(intervals.lower_limit(curve.hits, np.full(30, 200), 0.95) > 0.05))
        paper += paper_t_prime(curve) is not None
    assert alarms / 3000 <= 0.05 + 3.3 * np.sqrt(0.05 * 0.95 / 3000)
    assert single / 3000 > 0.5
    assert paper == 3000


def test_paper_mode_is_the_highest_level_with_any_of_the_first_draws() -> None:
    hit = np.zeros((4, 20), bool)
    hit[0, :] = True
    hit[1, 15] = True
    hit[3, 16] = True
    curve = HCurve(np.array([5, 10, 15, 20]), np.array([0.05, 0.1, 0.15, 0.2]), hit, 100)
    assert paper_t_prime(curve) == pytest.approx(0.1)
    assert paper_t_prime(curve, draws=20) == pytest.approx(0.2)
    assert paper_t_prime(HCurve(curve.levels, curve.times, np.zeros((4, 16), bool), 100)) is None
    with pytest.raises(ValueError, match="paper mode needs 16"):
        paper_t_prime(curve_of([1], 8))


@pytest.fixture(scope="module")
def memoriser():
    """Five atoms, 25 steps: chain, score, detector, atoms."""
    atoms = cyclic_orbit(5, 6, seed=2).astype(np.float32)
    return Chain(VP(), 25), atom_models.atom_score(VP(), atoms), atom_models.nearest(atoms), atoms


def test_a_memorised_record_returns_and_its_curve_ends_at_q(memoriser) -> None:
    """h(small t) = 1, h(T) = 1/5 (exact limits at .9999 for each record: false alarm below 5e-4; α_T = .007 moves
    h(T) by less than .01)."""
    chain, score, detect, atoms = memoriser
    curves = tprime.h_curves(chain, score, detect, atoms, np.array([25, 1, 7]), 800, KEY)
    for curve in curves:
        np.testing.assert_array_equal(curve.levels, [1, 7, 25])
        assert curve.hits[0] == 800
        lower, upper = curve.limits(0.9999)
        assert lower[2] - 0.01 <= 0.2 <= upper[2] + 0.01
        assert curve.hits[0] >= curve.hits[1] > curve.hits[2]
        assert statistical_t_prime(curve, 0.001).censored == "above"
        assert statistical_t_prime(curve, 0.3).value == pytest.approx(chain.times[7])
    # At level T a draw forgets its record: together the five see each atom once.
    assert abs(sum(c.hits[2] for c in curves) - 800) < 5 * np.sqrt(4000 * 0.2 * 0.8)


def test_the_noise_that_hides_a_record_is_the_noise_of_no_step(monkeypatch) -> None:
    """Otherwise the way back would know what was added: h(t) would be another sampler's."""
    chain, begun = Chain(VP(), 6), []

    def run(chain, score, keys, x, level):
        begun.append((keys, x))
        return x

    monkeypatch.setattr(chains, "run", run)
    record, level = jnp.array([[0.3, -0.2, 0.9]]), jnp.array([6, 3, 1, 3])
    operands = {"key": KEY, "score": None, "detect": lambda x, r: x[:, 0], "records": record}
    batch = {"record": jnp.zeros(4, int), "uid": jnp.zeros(4, int), "level": level, "draw": jnp.arange(4)}
    tprime.regenerate(chain, operands, batch)
    [(keys, x)] = begun
    alpha, sigma = (table[np.asarray(level)][:, None] for table in (chain.alpha, chain.sigma))
    noise = (np.asarray(x) - alpha * np.asarray(record)) / sigma
    assert len(np.unique(noise)) == 12
    for step in range(1, 7):
        assert not np.any(np.isclose(noise, chains.step_noise(keys, jnp.full(4, step), (3,)), atol=1e-4))


@pytest.mark.slow
def test_curves_do_not_depend_on_company_chunks_or_devices(memoriser) -> None:
    chain, score, detect, atoms = memoriser
    levels = np.array([3, 14, 20])
    one = data_mesh(jax.devices()[:1])
    together = tprime.h_curves(chain, score, detect, atoms, levels, 16, KEY, chunk=240, mesh=one)
    spread = tprime.h_curves(chain, score, detect, atoms, levels, 16, KEY, chunk=7)
    for a, b in zip(together, spread, strict=True):
        np.testing.assert_array_equal(a.hit, b.hit)
    only = np.array([3, 1])
    moved = atom_models.ball(atoms[only], 1.0), atom_models.ball(atoms, 1.0)
    alone, crowd = (
        tprime.h_curves(chain, score, d, r, levels, 16, KEY, uids=u)
        for d, r, u in zip(moved, (atoms[only], atoms), (only, None), strict=True)
    )
    for i, r in enumerate(only):
        np.testing.assert_array_equal(alone[i].hit, crowd[r].hit)


@pytest.mark.slow
def test_shown_images_are_those_that_were_counted(memoriser) -> None:
    chain, score, detect, atoms = memoriser
    levels = np.array([14, 2])
    images, margins = tprime.regenerated_images(chain, score, detect, atoms[:3], levels, 8, KEY)
    curves = tprime.h_curves(chain, score, detect, atoms[:3], levels, 8, KEY)
    assert images.shape == (3, 2, 8, 6)
    np.testing.assert_array_equal(margins > 0, np.stack([c.hit for c in curves]))
    # Level 2 comes back to the record itself.
    np.testing.assert_allclose(images[:, 0], np.broadcast_to(atoms[:3, None], (3, 8, 6)), atol=0.1)


@pytest.mark.parametrize("levels", [[0, 3], [3, 26], [3, 3], []])
def test_levels_outside_the_chain_are_refused(memoriser, levels) -> None:
    chain, score, detect, atoms = memoriser
    for draw in (tprime.h_curves, tprime.regenerated_images):
        with pytest.raises(ValueError, match="levels must be distinct"):
            draw(chain, score, detect, atoms, np.array(levels), 4, KEY)


def test_a_broken_score_raises_even_if_the_detector_hides_it() -> None:
    chain, records = Chain(VP(), 8), np.ones((1, 3), np.float32)
    for draw in (tprime.h_curves, tprime.regenerated_images):
        with pytest.raises(FloatingPointError, match="not finite while regenerating"):
            draw(chain, atom_models.BrokenScore(0.3), atom_models.blind, records, np.array([4]), 4, KEY)


@pytest.mark.slow
def test_200_controls_are_never_called_leaked() -> None:
    """Held-out points of the same kind as 40 atoms that a memoriser knows: t' absent, lower limits 0 by all estimators.

    No chance is involved: the memoriser returns its atoms, up to its smoothing.
    """
    rng = np.random.default_rng(3)
    atoms, controls = np.split(rng.standard_normal((240, 12)).astype(np.float32), [40])
    chain, score = Chain(VP(), 20), atom_models.atom_score(VP(), atoms)
    detect = atom_models.control(atoms, controls)
    curves = tprime.h_curves(chain, score, detect, controls, np.array([1, 4, 8, 14]), 16, KEY)
    found = [statistical_t_prime(curve, 1e-3) for curve in curves]
    assert {(t.value, t.censored) for t in found} == {(None, "below")}
    mixtures = [subspace.design(curve.by_level) for curve in curves]
    guided = subspace.estimate(chain, score, detect, controls, mixtures, KEY, draws=100, max_draws=400)
    assert {r.estimate.lower for r in guided} == {0.0}
    assert not any(r.estimate.reliable for r in guided)
    # Without a hit one round is drawn, and only its unguided tenth bounds q.
    assert {r.estimate.n for r in guided} == {100}
    assert guided[0].estimate.upper == pytest.approx(intervals.clopper_pearson(0, 10, 0.95)[1])
    images = montecarlo.sample(chain, score, (12,), 1000, KEY)
    hits = (montecarlo.margins(detect, images, 200) > 0).sum(axis=0)
    assert {montecarlo.direct(int(k), 1000, steps=20).estimate.lower for k in hits} == {0.0}


def test_the_same_program_serves_another_model(memoriser) -> None:
    chain, _, _, atoms = memoriser
    calls = []

    def counting(centres, x, t):
        calls.append(1)
        return atom_models.AtomScore(VP())(centres, x, t)

    for k in range(2):
        moved = jnp.asarray(np.roll(atoms, k, axis=1))
        score = jax.tree_util.Partial(counting, moved)
        tprime.h_curves(chain, score, atom_models.nearest(moved), atoms, np.array([5]), 4, KEY)
        if k == 0:
            traced = len(calls)
    assert traced >= 1
    assert len(calls) == traced
