"""Screening: its terms against closed forms, and whether it puts memorised records first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import atom_models
from oracles.part_memoriser import part_score

from diffusion_privacy.anonymity import screening
from diffusion_privacy.anonymity.screening import calibrate, recall_at, screen, window
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import DDPM, VP
from diffusion_privacy.errors import InputError

KEY = jax.random.key(0)


def normal_score(x: jax.Array, t: jax.Array) -> jax.Array:
    """Of data N(0, I): under a variance-preserving process x_t is N(0, I) too."""
    return -x


def expected(chain: Chain, records: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """``[N, L]`` terms of N(0, I) data: E[x_0 | x_t] = α x_t, so the guess errs by (α² − 1) x_0 + α σ ε."""
    alpha, sigma = chain.alpha[levels], chain.sigma[levels]
    _, c, b = (z[levels] for z in chain.posterior)
    s, d = chain.kernel_std[levels], records.shape[1]
    squared = sigma**4 * np.sum(records**2, axis=1)[:, None] + (alpha * sigma) ** 2 * d
    ratio = (b / s) ** 2
    return 0.5 * (c**2 * squared / s**2 + d * (ratio - 1 - np.log(ratio)))


@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_terms_are_the_divergences_of_the_bound(variance) -> None:
    """18 sums in all, each within 4.5 standard errors: false alarm below 1e-3 (Student, 255 degrees of freedom)."""
    chain, levels = Chain(DDPM(), 10, variance=variance), np.array([2, 5, 10])
    records = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    found = screen(chain, normal_score, records, KEY, levels=levels, draws=256)
    truth = expected(chain, records, levels)
    assert found.nats.shape == (3, 3)
    assert found.network_calls == 3 * 3 * 256
    assert np.all(np.abs(found.score - truth.sum(axis=1)) < 4.5 * found.stderr)
    assert np.all(found.stderr < 0.1 * truth.sum(axis=1))
    np.testing.assert_allclose(found.nats, truth, rtol=0.35)


@pytest.fixture(scope="module")
def partly():
    """200 training records of which every 40th is known by heart, 100 held out, and their scores under both models."""
    records = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
    leaked = np.arange(200) % 40 == 7
    chain = Chain(VP(), 20)
    model = part_score(VP(), records[:200][leaked])
    settings = {"levels": window(chain, count=4), "draws": 2}
    return chain, records, leaked, model, screen(chain, model, records, KEY, **settings), settings


def test_memorised_records_come_first(partly) -> None:
    _, _, leaked, _, found, _ = partly
    training = found.score[:200]
    assert set(np.argsort(training)[:5]) == set(np.flatnonzero(leaked))
    one, five = recall_at(training, leaked, 0.01), recall_at(training, leaked, 0.05)
    # The top 1 % are 2 records of 5.
    assert (one.value, five.value) == (0.4, 1.0)
    assert five.lower < 1
    assert np.flatnonzero(leaked)[0] in found.ranking[:5]


def test_held_out_records_calibrate(partly) -> None:
    """Memorised: the smallest p-value there is. The others are exchangeable with the held-out ones: at most 10 % of
    them below .1, plus 3.3 standard errors of both samples (.13)."""
    _, _, leaked, _, found, _ = partly
    placed = calibrate(found.score[:200], found.score[200:])
    assert placed.held_out == 100
    assert np.all(placed.p_value[leaked] == 1 / 101)
    assert np.all(placed.z[leaked] < -3)
    assert np.mean(placed.p_value[~leaked] <= 0.1) < 0.1 + 0.13


def test_the_standard_error_is_that_of_a_sample(monkeypatch) -> None:
    """Two draws a level: (a − b)²/4 each, added over the levels."""
    terms = np.array([[[1.0, 3.0], [0.0, 6.0]], [[2.0, 2.0], [5.0, 1.0]]])
    monkeypatch.setattr(screening.lanes, "run", lambda *args, **options: terms.reshape(-1))
    found = screen(Chain(VP(), 10), normal_score, np.zeros((2, 3)), KEY, levels=np.array([2, 5]), draws=2)
    np.testing.assert_allclose(found.stderr, [np.sqrt(1 + 9), np.sqrt(0 + 4)])
    np.testing.assert_allclose(found.score, [5.0, 5.0])


def test_a_held_out_score_that_ties_counts_against_the_record() -> None:
    """One above, two equal: 3 of 4 places are no more suspicious."""
    placed = calibrate(np.array([1.0, 0.5, 3.0]), np.array([1.0, 1.0, 2.0]))
    np.testing.assert_allclose(placed.p_value, [3 / 4, 1 / 4, 1.0])


def test_the_difference_to_a_reference_takes_out_what_is_merely_easy(partly) -> None:
    """Records near the centre cost less under any model; the reference's terms on the same noise take that out."""
    chain, records, leaked, model, found, settings = partly
    general = part_score(VP(), np.full((5, 16), 50.0))
    paired = screen(chain, model, records[:200], KEY, reference=general, **settings)
    assert paired.differenced
    assert paired.network_calls == 2 * 200 * 4 * 2
    assert recall_at(paired.score, leaked, 0.025).value == 1
    assert np.std(paired.score[~leaked]) < 0.1 * np.std(found.score[:200][~leaked])
    alone = screen(chain, model, records[20:60], KEY, uids=np.arange(20, 60), **settings)
    np.testing.assert_allclose(alone.score, found.score[20:60], rtol=1e-4)


def test_recall_counts_ties_against_the_ranking() -> None:
    leaked = np.array([True, False, False, True])
    assert recall_at(np.zeros(4), leaked, 0.5).value == 0
    assert recall_at(np.array([0.0, 1, 2, 3]), leaked, 0.25).value == 0.5
    assert recall_at(np.arange(100.0), np.arange(100) < 5, 0.05).value == 1
    assert recall_at(np.arange(100.0), np.arange(100) < 6, 0.05).value == pytest.approx(5 / 6)


def test_bad_input_is_named(partly) -> None:
    chain, records, _, model, _, _ = partly
    for levels in ([1, 3], [3, 21], [3, 3], []):
        with pytest.raises(InputError, match="screening levels"):
            screen(chain, model, records, KEY, levels=np.array(levels))
    with pytest.raises(InputError, match="screening draws"):
        screen(chain, model, records, KEY, draws=1)
    with pytest.raises(InputError, match="screening window"):
        window(chain, 0.0, 0.01)
    with pytest.raises(InputError, match="held_out"):
        calibrate(np.zeros(3), np.zeros(1))
    with pytest.raises(InputError, match="all scores are equal"):
        calibrate(np.zeros(3), np.zeros(5))
    with pytest.raises(InputError, match="no record is leaked"):
        recall_at(np.zeros(3), np.zeros(3, bool), 0.1)
    with pytest.raises(InputError, match="share"):
        recall_at(np.zeros(3), np.ones(3, bool), 0.0)
    with pytest.raises(FloatingPointError, match="while screening"):
        screen(Chain(VP(), 8), atom_models.BrokenScore(0.9), np.ones((2, 3), np.float32), KEY)


def test_a_window_leaves_out_the_noiseless_step() -> None:
    chain = Chain(VP(), 100)
    np.testing.assert_array_equal(window(chain, 0.0, 0.05), [2, 3, 4, 5])
    assert len(window(chain)) == 10
    assert screening.window(chain)[-1] == 60
    assert jnp.isfinite(screening._variance_term(chain)).all()
