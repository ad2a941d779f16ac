"""The adaptive audit: what it decides is right, for curves that fall and curves that do not, and it says how little it
decided."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from oracles import atom_models
from oracles.group_code import cyclic_orbit

from diffusion_privacy.anonymity import adaptive, sequential, tprime
from diffusion_privacy.anonymity.adaptive import AdaptiveAudit, Rule, search
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.errors import InputError
from diffusion_privacy.training.sharding import data_mesh

KEY = jax.random.key(0)
LEVELS = np.arange(1, 32)


def run(h: np.ndarray, rule: Rule, records: int = 1, seed: int = 0) -> AdaptiveAudit:
    """The search on draws with rate ``h[L]``, the same for every record."""
    rng = np.random.default_rng(seed)
    return search(lambda _, place, __, count: rng.binomial(count, h[place]), records, LEVELS, LEVELS / 31, rule)


def wrong(audit: AdaptiveAudit, h: np.ndarray) -> np.ndarray:
    """``[R]`` whether a record holds any wrong decision, at any level that it looked at."""
    rule = audit.rule
    found = sequential.decide(audit.hits, audit.draws, rule.gamma, rule.ceiling, audit.error_each)
    false = (found == sequential.ABOVE) & (h <= rule.gamma) | (found == sequential.BELOW) & (h > rule.ceiling)
    return np.any(false, axis=1)


def falling(middle: float, scale: float) -> np.ndarray:
    return 1 / (1 + np.exp((LEVELS - middle) / scale))


def test_the_bracket_holds_the_crossing() -> None:
    """Steep curves; error 1e-3 over 20 records: a false alarm once in 1,000 runs."""
    h = falling(12.5, 0.2)
    audit = run(h, Rule(0.5, error=1e-3), 20)
    assert {(i.lower_level, i.upper_level, i.censored, i.finished) for i in audit.intervals} == {(12, 13, None, True)}
    one = audit.intervals[0]
    assert (one.lower, one.upper) == (pytest.approx(12 / 31), pytest.approx(13 / 31))
    assert one.looks == 5
    assert one.network_calls == int(np.sum(audit.draws[0] * LEVELS))
    assert audit.network_calls == sum(i.network_calls for i in audit.intervals)
    assert audit.error_each == pytest.approx(1e-3 / (20 * 10))


@pytest.mark.parametrize("gamma", [0.05, 0.5])
def test_a_record_errs_at_most_at_the_stated_rate(gamma) -> None:
    """Error .3 a record, 80 records, every level as near to γ as the nulls allow: .3 plus 3.3 standard errors. Then
    falling curves: the same, and wherever nothing is wrong t' lies in the bracket."""
    flat = np.where(LEVELS % 2 == 0, gamma, np.nextafter(gamma, 1))
    rule = Rule(gamma, error=0.3, looks=5, simultaneous=False)
    assert np.mean(wrong(run(flat, rule, 80), flat)) < 0.3 + 3.3 * np.sqrt(0.3 * 0.7 / 80)
    h = falling(16, 3)
    audit = run(h, rule, 80)
    bad = wrong(audit, h)
    assert np.mean(bad) < 0.3 + 3.3 * np.sqrt(0.3 * 0.7 / 80)
    truth = LEVELS[h > gamma].max()
    for i in [i for i, b in zip(audit.intervals, bad, strict=True) if not b]:
        assert (i.lower_level or 0) <= truth < (i.upper_level or 32)


def test_all_records_together_err_at_the_rate_of_one() -> None:
    """30 audits of 10 records at .3 for all: .3 plus 3.3 standard errors. Decided without any correction, most audits
    of these curves hold an error."""
    h = np.full(31, 0.5)
    h[::2] = np.nextafter(0.5, 1)
    rule = Rule(0.5, error=0.3, looks=3)
    assert np.mean([wrong(run(h, rule, 10, s), h).any() for s in range(30)]) < 0.3 + 3.3 * np.sqrt(0.3 * 0.7 / 30)
    loose = Rule(0.5, error=0.9, looks=1, simultaneous=False)
    assert np.mean([wrong(run(h, loose, 10, s), h).any() for s in range(10)]) > 0.6


def test_a_curve_that_rises_again_is_bracketed_where_it_was_looked_at() -> None:
    """h > γ at levels 1–8 and again at 24–28, so that t' = 28: the lower end holds, the upper is h <= γ there alone."""
    h = np.where(LEVELS <= 8, 0.95, np.where((LEVELS >= 24) & (LEVELS <= 28), 0.95, 0.02))
    one = run(h, Rule(0.5, error=1e-3)).intervals[0]
    assert h[one.lower_level - 1] > 0.5 >= h[one.upper_level - 1]
    assert one.lower_level <= 28
    assert (one.lower_level, one.upper_level) == (8, 9)


def test_what_was_not_decided_is_said() -> None:
    above = run(np.ones(31), Rule(0.5)).intervals[0]
    assert (above.lower_level, above.upper_level, above.upper, above.censored) == (31, None, None, "above")
    below = run(np.zeros(31), Rule(0.01, 0.3)).intervals[0]
    assert (below.lower, below.upper_level, below.censored, below.finished) == (None, 1, "below", True)
    neither = run(np.full(31, 0.5), Rule(0.5, error=1e-6, looks=3)).intervals[0]
    assert (neither.censored, neither.finished, len(neither.given_up), neither.looks) == ("both", False, 3, 3)


def test_less_is_asked_for_less() -> None:
    h = falling(14, 2)
    wide, narrow = run(h, Rule(0.2, 0.6, width=8)), run(h, Rule(0.2, 0.6))
    assert all(i.upper_level - i.lower_level <= 8 for i in wide.intervals)
    assert wide.network_calls < narrow.network_calls
    # Both claims of the narrow bracket are true, whatever lies between γ and γ'.
    one = narrow.intervals[0]
    assert h[one.lower_level - 1] > 0.2
    assert h[one.upper_level - 1] <= 0.6


def test_no_draw_is_counted_twice() -> None:
    """Near γ a level is drawn from in many rounds: each asks for numbers that no other round had."""
    rng, seen = np.random.default_rng(0), set()

    def draw(record, place, first, count):
        for r, p, start, n in zip(record, place, first, count, strict=True):
            fresh = {(int(r), int(p), k) for k in range(int(start), int(start + n))}
            assert not fresh & seen
            seen.update(fresh)
        return rng.binomial(count, 0.5)

    audit = search(draw, 3, LEVELS, LEVELS / 31, Rule(0.5, looks=2, max_draws=400))
    assert len(seen) == audit.draws.sum()
    assert audit.rounds > 4
    packed = adaptive._packed(
        np.array([0, 2]), np.array([3, 5]), np.array([4, 0]), np.array([2, 3]), np.array([7, 8, 9]), 8
    )
    rows = set(zip(*(packed[name].tolist() for name in ("uid", "level", "draw")), strict=True))
    assert rows == {(7, 3, 4), (7, 3, 5), (9, 5, 0), (9, 5, 1), (9, 5, 2), (0, 0, 0)}


def test_a_rule_that_can_decide_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"draws without a hit cannot show h <= 0\.01"):
        run(np.zeros(31), Rule(0.01, max_draws=100))
    for field, bad in {"gamma": 1.0, "gamma_upper": 0.1, "error": 0.0, "looks": 0, "max_draws": 0, "width": 0}.items():
        with pytest.raises(InputError, match=f"adaptive.{field}"):
            Rule(**{"gamma": 0.2, field: bad})
    with pytest.raises(InputError, match=r"adaptive\.gamma_upper"):
        Rule(0.0)


@pytest.fixture(scope="module")
def memoriser():
    """Five atoms, 25 steps: chain, score, detector, atoms."""
    atoms = cyclic_orbit(5, 6, seed=2).astype(np.float32)
    return Chain(VP(), 25), atom_models.atom_score(VP(), atoms), atom_models.nearest(atoms), atoms


def test_a_memoriser_is_bracketed_by_its_curve(memoriser) -> None:
    """h falls from 1 to 1/5: above .1 up to the highest level, and through .5 in between."""
    chain, score, detect, atoms = memoriser
    levels = np.array([1, 3, 7, 14, 18, 25])
    high = adaptive.intervals_of(
        chain, score, detect, atoms, KEY, Rule(0.05, 0.3, max_draws=1000), levels=levels, chunk=64
    )
    assert {(i.lower_level, i.censored) for i in high.intervals} == {(25, "above")}
    half = adaptive.intervals_of(chain, score, detect, atoms, KEY, Rule(0.4, 0.7), levels=levels, chunk=64)
    assert all(i.censored is None and 3 <= i.lower_level < i.upper_level <= 25 for i in half.intervals)
    curve = half.by_level(0)
    assert curve.shape == (25,)
    assert np.count_nonzero(~np.isnan(curve)) == half.intervals[0].looks
    if jax.default_backend() == "cpu":
        # There a chunk of 64 a device would be mostly empty: chunks follow the first round, and fewer lanes are run.
        assert half.lanes_run < 2 * half.draws.sum() + 256
    for bad in ([0, 3], [3, 26], [3, 3], []):
        with pytest.raises(InputError, match="adaptive levels"):
            adaptive.intervals_of(chain, score, detect, atoms, KEY, Rule(0.5), levels=np.array(bad))


@pytest.mark.slow
def test_draws_are_those_of_the_grid_whatever_the_chunks(memoriser) -> None:
    chain, score, detect, atoms = memoriser
    rule, levels = Rule(0.4, 0.7), np.array([1, 7, 14, 18, 25])
    here = adaptive.intervals_of(chain, score, detect, atoms, KEY, rule, levels=levels, chunk=64)
    one = data_mesh(jax.devices()[:1])
    there = adaptive.intervals_of(chain, score, detect, atoms, KEY, rule, levels=levels, chunk=7, mesh=one)
    np.testing.assert_array_equal(here.hits, there.hits)
    np.testing.assert_array_equal(here.draws, there.draws)
    grid = tprime.h_curves(chain, score, detect, atoms, levels, int(here.draws.max()), KEY)
    for r, curve in enumerate(grid):
        for k, n in enumerate(here.draws[r]):
            assert here.hits[r, k] == curve.hit[k, :n].sum()


def test_a_broken_score_raises_even_if_the_detector_hides_it() -> None:
    with pytest.raises(FloatingPointError, match="not finite while regenerating"):
        adaptive.intervals_of(
            Chain(VP(), 8), atom_models.BrokenScore(0.3), atom_models.blind, np.ones((1, 3), np.float32), KEY, Rule(0.5)
        )
