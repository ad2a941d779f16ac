"""E7: pairs that differ, and only those."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from oracles import atom_models
from oracles.group_code import cyclic_orbit
from scipy import stats

from diffusion_privacy.anonymity.counterfactual import counterfactual, paired
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.errors import InputError


@pytest.mark.parametrize("cells", [(0.02, 0.01, 0.05), (0.3, 0.3, 0.1), (0.005, 0.0, 0.0), (0.0, 0.0, 0.4)])
def test_intervals_cover_the_difference(cells) -> None:
    """400 tables of 300 pairs at level .9; fewer than 330 cover by chance once in 10,000 tests at most."""
    rng = np.random.default_rng(0)
    gained, lost, both = cells
    covered = 0
    for _ in range(400):
        kind = rng.choice(4, 300, p=[gained, lost, both, 1 - gained - lost - both])
        found = paired((kind == 0) | (kind == 2), (kind == 1) | (kind == 2), 0.9)
        covered += found.lower <= gained - lost <= found.upper
    assert covered >= 336


def test_hand_worked_table() -> None:
    """5 against 1 discordant pairs: McNemar's exact one-sided p-value is P(Bin(6, 1/2) >= 5) = 7/64."""
    a = np.array([True] * 5 + [False] + [True] * 2 + [False] * 92)
    b = np.array([False] * 5 + [True] + [True] * 2 + [False] * 92)
    found = paired(a, b, steps=3)
    assert (found.only_with, found.only_without, found.both, found.n) == (5, 1, 2, 100)
    assert found.value == pytest.approx(0.04)
    assert found.p_value == pytest.approx(7 / 64)
    # Both exact limits at 97.5 %, so that their difference holds at 95 %: Clopper and Pearson's Beta quantiles.
    assert found.lower == pytest.approx(stats.beta.ppf(0.0125, 5, 96) - stats.beta.ppf(0.9875, 2, 99))
    assert found.upper == pytest.approx(stats.beta.ppf(0.9875, 6, 95) - stats.beta.ppf(0.0125, 1, 100))
    assert found.lower < 0 < found.upper
    assert found.network_calls == 600
    swapped = paired(b, a)
    assert (swapped.lower, swapped.upper) == (pytest.approx(-found.upper), pytest.approx(-found.lower))


def test_pairs_say_more_than_two_counts() -> None:
    """Shared false alarms cancel: counted apart, they would hide the difference."""
    rng = np.random.default_rng(1)
    plausible = rng.random(2000) < 0.3
    memorised = rng.random(2000) < 0.02
    found = paired(plausible | memorised, plausible)
    assert found.lower > 0
    assert found.p_value < 1e-6
    apart = paired(plausible | memorised, rng.permutation(plausible))
    assert apart.lower < 0


def test_detectors_that_tell_nothing_are_named() -> None:
    never, always = np.zeros(50, bool), np.ones(50, bool)
    assert "no pair differs" in paired(never, never).reasons[0]
    assert paired(never, never).p_value == 1.0
    assert any("every image" in r for r in paired(always, always).reasons)
    for a, b in ((never, np.zeros(49, bool)), (never.astype(int), never), (np.zeros(0, bool), np.zeros(0, bool))):
        with pytest.raises(InputError):
            paired(a, b)


@pytest.mark.slow
def test_a_memorised_atom_makes_the_difference() -> None:
    """8 atoms against the same with the first replaced by the second: Δq is 1/8 for the first, 0 for the others' cells
    that lie far; each interval at level 1 − 1e-6."""
    atoms = cyclic_orbit(8, 4, seed=0)
    fewer = np.concatenate([atoms[1:2], atoms[1:]])
    chain, detect = Chain(VP(), 14), atom_models.ball(atoms, 0.3)
    scores = [atom_models.atom_score(VP(), a) for a in (atoms, fewer)]
    found = counterfactual(chain, *scores, detect, (4,), 8, 1500, jax.random.key(0), level=1 - 1e-6)
    assert found[0].lower > 0
    assert found[0].lower <= 1 / 8 <= found[0].upper
    assert found[0].only_without == 0
    assert found[0].network_calls == 2 * 1500 * 14
    same = counterfactual(chain, scores[0], scores[0], detect, (4,), 8, 1500, jax.random.key(0))
    assert all(f.value == 0 and f.only_with == 0 for f in same)
