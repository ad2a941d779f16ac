"""E5 against tails that are known in closed form.

The score of one Gaussian is linear, so the sampler as run is a linear map of its noise: x_0 = b + Σ a_k u_k, found here
by differentiating it, and the probability of a half-space is a normal tail, discretisation included.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from oracles import atom_models
from oracles.gaussian_mixture import GaussianMixture
from scipy import stats

from diffusion_privacy.anonymity import montecarlo, splitting
from diffusion_privacy.anonymity.paths import ChainPath, SamplerPath
from diffusion_privacy.anonymity.splitting import Splitting, estimate
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.samplers import Sampler
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.errors import InputError

KEY = jax.random.key(0)
CHAIN = Chain(VP(), 8)
SCORE = atom_models.atom_score(VP(), np.array([[0.5, -0.2]]), 0.3)
QUICK = Splitting(particles=250, moves=4, replicas=8)


def affine(slope, offset, x, record):
    return slope[record] * x[:, 0] + offset[record]


def detector(slope, offset) -> Partial:
    """Margins slope[r]·x₁ + offset[r]; the numbers are arguments, so that all detectors share a program."""
    return Partial(affine, jnp.asarray(slope, jnp.float32), jnp.asarray(offset, jnp.float32))


def cut(path, rate: float) -> float:
    """x₁ beyond which an image lies with probability ``rate``."""

    def first(noise):
        return path(SCORE, noise[None])[0, 0]

    origin = jnp.zeros((path.noises, 2))
    slope = np.asarray(jax.grad(first)(origin), np.float64)
    return float(first(origin)) + float(np.linalg.norm(slope)) * float(stats.norm.isf(rate))


def run(path, rates, settings=QUICK, **kwargs):
    detect = detector(np.ones(len(rates)), [-cut(path, q) for q in rates])
    # One replica a device at a time: the pilot and the replicas share a program.
    kwargs = {"chunk": 1, **kwargs}
    return estimate(path, SCORE, detect, (2,), len(rates), KEY, settings=settings, **kwargs)


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize(
    ("path", "rates"),
    [
        (ChainPath(CHAIN), (1e-6,)),
        pytest.param(ChainPath(CHAIN), (1e-8, 1e-2, 0.3), marks=pytest.mark.slow),
        pytest.param(SamplerPath(VP(), Sampler("ddim", 8)), (1e-8, 1e-6, 1e-2), marks=pytest.mark.slow),
    ],
    ids=["chain", "rarer", "ddim"],
)
def test_tails_down_to_one_in_a_hundred_million(path, rates) -> None:
    """Within a factor 2 (relative standard error below .2: 3.5 of them), and in the interval at level .999."""
    settings = QUICK if len(rates) == 1 else Splitting(particles=500, moves=6, replicas=8)
    for q, result in zip(rates, run(path, rates, settings, level=0.999), strict=True):
        found = result.estimate
        assert found.reliable, found.reasons
        assert 0.5 < found.value / q < 2
        assert found.lower <= q <= found.upper
        assert len(result.thresholds) == 1 + len(result.acceptance)
        assert result.thresholds[-1] == 0
        # Direct sampling needs ten times as many for ten hits, and a thousand times at 1e-8.
        assert q > 1e-5 or found.network_calls < 10 * 8 / q / 10


@pytest.mark.slow
def test_the_path_is_the_sampler() -> None:
    """Moments of 4,000 images from normal noise against the sampler's own; 5 standard errors."""
    noise = jax.random.normal(KEY, (4000, 8, 2))
    mine = np.asarray(ChainPath(CHAIN)(SCORE, noise))
    own = montecarlo.sample(CHAIN, SCORE, (2,), 4000, KEY)
    np.testing.assert_allclose(mine.mean(0), own.mean(0), atol=5 * 0.55 * np.sqrt(2 / 4000))
    np.testing.assert_allclose(mine.std(0), own.std(0), atol=5 * 0.55 / np.sqrt(4000))
    for sampler in (Sampler("ancestral"), Sampler("ddim", eta=0.5), Sampler("ode_adaptive")):
        with pytest.raises(InputError, match=r"sampler\.name"):
            SamplerPath(VP(), sampler)


@pytest.mark.slow
def test_replicas_are_unbiased_with_few_particles_and_bad_moves() -> None:
    """50 particles and one move: 300 replicas average to q = 1e-3 all the same; |z| < 4 (6e-5)."""
    settings = Splitting(particles=50, moves=1, replicas=300)
    (result,) = run(ChainPath(CHAIN), [1e-3], settings, chunk=50)
    values = result.values
    assert abs(values.mean() - 1e-3) < 4 * values.std() / np.sqrt(len(values))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["moves that ignore the level", "moves that leave the normal law"])
def test_planted_faults_are_seen(monkeypatch, fault) -> None:
    """At q = 1e-6 the factor 2 of the test above is left."""
    if fault == "moves that ignore the level":
        right = splitting._move

        def wrong(run, operands, key, record, state, adapt):
            low = state._replace(thresholds=state.thresholds - 0.3)
            return right(run, operands, key, record, low, adapt)._replace(thresholds=state.thresholds)

        monkeypatch.setattr(splitting, "_move", wrong)
    else:
        monkeypatch.setattr(splitting.jnp, "sqrt", lambda v: jnp.ones_like(v))
    # Settings of its own: the sound program must not be found in the cache, nor this one later.
    (result,) = run(ChainPath(CHAIN), [1e-6], Splitting(particles=100 + len(fault), moves=4, replicas=9))
    assert not 0.5 < result.estimate.value / 1e-6 < 2


@pytest.mark.slow
def test_a_ball_in_a_mixture() -> None:
    """A small ball in one of five components: 1.2e-5 by the noncentral chi-square; within a factor 2 by DDIM, whose 60
    steps are near the exact law. Particles start in all components and have to end in one."""
    means = np.random.default_rng(1).normal(size=(5, 4))
    truth = GaussianMixture(means, 0.2)
    q = truth.ball_probability(means[2] + 0.15, 0.04)
    assert 1e-6 < q < 2e-5
    detect = atom_models.ball(means[2:3] + 0.15, 0.04)
    settings = Splitting(particles=300, moves=5, replicas=8)
    path = SamplerPath(VP(), Sampler("ddim", 60, "quadratic"))
    (result,) = estimate(path, truth.score(VP()), detect, (4,), 1, KEY, settings=settings)
    assert 0.5 < result.estimate.value / q < 2


@pytest.mark.slow
def test_detectors_that_give_nothing_to_climb() -> None:
    """Never, always, and a clean no of a detector without a margin; then one that breaks on its way."""
    flat = detector([0.0, 0.0, 1e-9], [-1.0, 1.0, -1.0])
    none, sure, level = estimate(ChainPath(CHAIN), SCORE, flat, (2,), 3, KEY, settings=QUICK)
    for found in (none.estimate, level.estimate):
        assert (found.value, found.lower, found.upper, found.reliable) == (0.0, 0.0, 1.0, False)
        assert "rose to -1 only" in found.reasons[0]
    assert (sure.estimate.value, sure.estimate.upper, sure.estimate.reliable) == (1.0, 1.0, True)
    # 2,000 of 2,000 plain samples: the exact limit.
    assert sure.estimate.lower == pytest.approx(stats.beta.ppf(0.025, 2000, 1))
    broken = detector([1.0] * 3, [-1.0, np.nan, -1.0])
    with pytest.raises(FloatingPointError, match="while splitting"):
        estimate(ChainPath(CHAIN), SCORE, broken, (2,), 3, KEY, settings=QUICK)


def made_up(values: np.ndarray, acceptance: float):
    """The result of replicas with these values that moved at three levels."""
    settings = Splitting(particles=250, moves=4, replicas=len(values))
    pilot = {"levels": np.array([3]), "thresholds": np.zeros((1, settings.max_levels))}
    blank = np.ones((len(values), settings.max_levels))
    shares = np.concatenate([values[:, None], blank[:, 1:]], axis=1)
    out = {"shares": shares, "acceptance": acceptance * blank, "levels": np.full(len(values), 3)}
    return splitting._result(splitting._Run(ChainPath(CHAIN), settings, (2,)), 0.95, pilot, 0, out).estimate


def test_the_interval_over_replicas_is_students_with_half_their_number() -> None:
    """On the logarithm of the mean. Where the moves are doubtful: Markov below, and nothing above."""
    values = 1e-3 * np.exp(0.3 * np.random.default_rng(0).standard_normal(16))
    found, mean = made_up(values, 0.4), values.mean()
    error = np.sqrt(np.sum((values - mean) ** 2) / 15 / 16) / mean
    assert found.log_stderr == pytest.approx(error)
    reach = np.exp(stats.t.ppf(0.975, 7) * error)
    assert (found.lower, found.upper) == (pytest.approx(mean / reach), pytest.approx(mean * reach))
    doubtful = made_up(values, 0.01)
    assert not doubtful.reliable
    assert (doubtful.lower, doubtful.upper) == (pytest.approx(0.025 * mean), 1.0)


def test_the_pilot_is_not_counted(monkeypatch) -> None:
    """Its thresholds follow its own particles. A replica with the pilot's noise would be judged by its own choice."""
    seen = []

    def noted(fn, run, operands, batch, **options):
        seen.append(set(zip(batch["uid"].tolist(), batch["replica"].tolist(), strict=True)))
        blank = np.ones((len(batch["record"]), run.settings.max_levels))
        each = np.ones(len(blank), int)
        names = ("thresholds", "shares", "sizes", "acceptance")
        return dict.fromkeys(names, blank) | {"levels": each, "reached": each > 0, "broken": each < 0}

    monkeypatch.setattr(splitting.lanes, "run", noted)
    estimate(ChainPath(CHAIN), SCORE, detector([1.0, 1.0], [0.0, 0.0]), (2,), 2, KEY, settings=QUICK)
    pilot, counted = seen
    assert (len(pilot), len(counted)) == (2, 16)
    assert not pilot & counted


def test_every_noise_of_a_path_is_spent_once() -> None:
    """The score is linear: Var x_0 = Σ a_k² by differentiating the path, and by V ← m² V + s² step by step."""
    slope = jax.grad(lambda noise: ChainPath(CHAIN)(SCORE, noise[None])[0, 0])(jnp.zeros((8, 2)))
    var = CHAIN.sde.prior_std**2
    for level in range(8, 0, -1):
        both = CHAIN.model_mean(SCORE, jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.full(2, level))
        var = float(both[0, 0] - both[1, 0]) ** 2 * var + CHAIN.kernel_std[level] ** 2
    assert float(jnp.sum(slope**2)) == pytest.approx(var, rel=1e-4)
    # That of the last step, which adds nothing, is never drawn.
    assert np.count_nonzero(slope[:, 0]) == 8


def test_few_or_disagreeing_replicas_are_not_trusted() -> None:
    values = np.array([1e-6, 0.0, 0.0, 9e-6])
    reasons = splitting._doubts(values, 0.87, np.array([0.3, 0.01]))
    assert [r.split()[0] for r in reasons] == ["4", "2", "replicas", "only"]
    for fields in ({"share": 0.6}, {"particles": 20}, {"moves": 0}, {"replicas": 1}, {"max_levels": 0}):
        with pytest.raises(InputError, match=next(iter(fields))):
            Splitting(**fields)
