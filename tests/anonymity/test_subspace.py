"""E2 against rates that are known exactly, and against its own mistakes.

The atoms are orbits of a group that commutes with the sampler, so the sampler as run shows each with probability
exactly 1/n, whatever its steps, its kernel, or how wrong its score is, as long as that is an orbit too.
"""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import atom_models
from oracles.gaussian_mixture import GaussianMixture
from oracles.group_code import cyclic_orbit
from scipy import stats

from diffusion_privacy.anonymity import intervals, lanes, montecarlo, subspace, tprime
from diffusion_privacy.anonymity.subspace import Mixture, balance_terms, design, estimate
from diffusion_privacy.diffusion.chain import Chain, step_noise
from diffusion_privacy.diffusion.sde import DDPM, VE, VP, SubVP
from diffusion_privacy.training.sharding import data_mesh

KEY = jax.random.key(0)
RUNS, DRAWS = 200, 200
GOOD = Mixture((4, 4, 7, 9), (0.5, 1.0, 0.75, 0.5), (0.2, 0.2, 0.25, 0.25), 0.1)
HIGH = Mixture((12, 13, 13, 14), (1.0, 0.75, 1.0, 0.5), (0.2, 0.2, 0.2, 0.2), 0.2)
LOW = Mixture((1, 1, 2, 2), (0.5, 0.3, 0.5, 0.3), (0.15, 0.15, 0.15, 0.15), 0.4)


def of_first(detect, x, number):
    """``detect`` for record 0 whichever row is asked for."""
    return detect(x, jnp.zeros_like(number))


def repeated(chain, score, detect, record, mixture, key=KEY) -> np.ndarray:
    """q̂ of ``RUNS`` independent runs of one round: one record under as many uids, in one program."""
    records = np.repeat(np.asarray(record, np.float32)[None], RUNS, axis=0)
    first = jax.tree_util.Partial(of_first, detect)
    results = estimate(chain, score, first, records, [mixture] * RUNS, key, draws=DRAWS, max_draws=DRAWS)
    return np.array([r.estimate.value for r in results])


def z_score(values: np.ndarray, truth: float, truth_error: float = 0.0) -> float:
    return (values.mean() - truth) / np.hypot(values.std(ddof=1) / np.sqrt(len(values)), truth_error)


STEPS = 14
ORBIT = cyclic_orbit(8, 4, seed=0)
CASES = {
    "vp": (Chain(VP(), STEPS), ORBIT, ORBIT, GOOD),
    "guided too early": (Chain(VP(), STEPS), ORBIT, ORBIT, HIGH),
    "guided too late": (Chain(VP(), STEPS), ORBIT, ORBIT, LOW),
    "clip_x0": (Chain(VP(), STEPS, clip_x0=True), *[atom_models.rolled_orbit(8, seed=1)] * 2, GOOD),
    "euler_maruyama": (Chain(VP(), STEPS, "euler_maruyama"), ORBIT, ORBIT, GOOD),
    "quadratic": (Chain(VP(), STEPS, spacing="quadratic"), ORBIT, ORBIT, GOOD),
    "subvp": (Chain(SubVP(), STEPS), ORBIT, ORBIT, GOOD),
    "ve": (Chain(VE(0.01, 20.0), STEPS), ORBIT, ORBIT, GOOD),
    "ddpm linear": (Chain(DDPM(1000), STEPS), ORBIT, ORBIT, GOOD),
    "ddpm cosine": (Chain(DDPM(1000, "cosine"), STEPS), ORBIT, ORBIT, GOOD),
    "ddpm as diffusers runs it": (
        Chain(
            DDPM(1000),
            STEPS,
            clip_x0=True,
            clip_range=0.8,
            variance="forward",
            visits=tuple(range(1, 1000, 71))[:STEPS],
        ),
        *[atom_models.rolled_orbit(8, seed=1)] * 2,
        GOOD,
    ),
    # A score that knows the wrong atoms (those of another orbit of the group).
    "wrong score": (
        Chain(VP(), STEPS),
        0.7 * ORBIT + 0.5 * np.roll(ORBIT, 1, axis=0),
        ORBIT,
        GOOD,
    ),
}
FAST = ("vp", "guided too early", "guided too late", "wrong score", "clip_x0")
cases = [pytest.param(*case, id=name, marks=[] if name in FAST else pytest.mark.slow) for name, case in CASES.items()]


@pytest.mark.parametrize(("chain", "known", "atoms", "mixture"), cases)
def test_unbiased_over_200_runs(chain, known, atoms, mixture) -> None:
    """|z| < 3: false alarm .27 % a case under normality, 3 % over all twelve."""
    score = atom_models.atom_score(chain.sde, known)
    values = repeated(chain, score, atom_models.nearest(atoms), atoms[0], mixture)
    assert abs(z_score(values, 1 / len(atoms))) < 3


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["ancestral", "euler_maruyama"])
def test_unbiased_for_the_sampler_as_run_with_a_wrong_score(kernel) -> None:
    """A blurred score of shifted atoms and a detector that wants the record within .6: truth by direct sampling,
    pooled over the 8 symmetric records (its error is part of z). |z| < 3, false alarm .54 % over both kernels."""
    chain = Chain(VP(), 10, kernel)
    known = 0.8 * ORBIT + 0.2 * np.roll(ORBIT, 1, axis=0)
    score, detect = atom_models.atom_score(VP(), known, var=0.05), atom_models.ball(ORBIT, 0.6)
    images = montecarlo.sample(chain, score, (4,), 40_000, jax.random.key(5))
    hits = int((montecarlo.margins(detect, images, 8) > 0).sum())
    truth = hits / (8 * 40_000)
    # Well below 1/8: the wrong sampler rarely gets that close, which is what must be measured.
    assert 0.005 < truth < 0.115
    mixture = Mixture((2, 4, 6), (0.5, 0.75, 1.0), (0.3, 0.3, 0.3), 0.1)
    values = repeated(chain, score, detect, ORBIT[0], mixture)
    assert abs(z_score(values, truth, np.sqrt(hits) / (8 * 40_000))) < 3


FAULTS = {
    "log-ratio with the wrong sign": (balance_terms, "log_w = lam * np.asarray(a", "log_w = -lam * np.asarray(a"),
    "quadratic term missing": (balance_terms, "0.5 * lam**2 *", "0.0 * lam**2 *"),
    "guidance not squared": (balance_terms, "0.5 * lam**2 *", "0.5 * lam *"),
    "unconditional share forgotten": (balance_terms, "np.log(share[0])", "-np.inf"),
    "guided one level too long": (subspace.guided_paths, 'level > batch["level"]', 'level >= batch["level"]'),
    "sums read one level early": (subspace.guided_paths, "rows = chain.steps - ", "rows = chain.steps - 1 - "),
    "variance not squared": (
        subspace.guided_paths,
        "jnp.where(at >= 2, std, 1.0) ** 2",
        "jnp.where(at >= 2, std, 1.0)",
    ),
}


faults = [
    # Faults in the paths compile a program each.
    pytest.param(*f, id=name, marks=[pytest.mark.slow] if f[0] is subspace.guided_paths else [])
    for name, f in FAULTS.items()
]


@pytest.mark.parametrize(("function", "right", "wrong"), faults)
def test_planted_faults_are_rejected(monkeypatch, function, right, wrong) -> None:
    """The statistic of the test above goes beyond 5 (without a fault: once in 2 million): it would see each."""
    source = inspect.getsource(function)
    assert source.count(right) == 1, "the line that this fault is planted in has changed: plant it anew"
    namespace = dict(vars(subspace))
    # Annotations stay strings, as they are in the module itself.
    exec(compile("from __future__ import annotations\n" + source.replace(right, wrong), "fault", "exec"), namespace)
    monkeypatch.setattr(subspace, function.__name__, namespace[function.__name__])
    chain, known, atoms, mixture = CASES["vp"]
    values = repeated(chain, atom_models.atom_score(chain.sde, known), atom_models.nearest(atoms), atoms[0], mixture)
    assert abs(z_score(values, 1 / 8)) > 5


@pytest.mark.parametrize("kernel", ["ancestral", pytest.param("euler_maruyama", marks=pytest.mark.slow)])
def test_the_log_ratio_is_that_of_gaussian_densities(kernel) -> None:
    """Paths followed step by step on the host; densities of every step by scipy, in float64."""
    chain = Chain(VP(), 6, kernel)
    score, target = atom_models.atom_score(VP(), ORBIT, var=0.1), ORBIT[2].astype(np.float32)
    components = [(1, 1.0), (3, 0.5), (5, 0.75), (6, 1.0)]
    drawn = [(7, 0.0), *components, (2, 0.3)]
    count = len(drawn)
    batch = {
        "record": np.zeros(count, np.int32),
        "uid": np.full(count, 3, np.int32),
        "draw": np.arange(count, dtype=np.int32),
        "level": np.array([d[0] for d in drawn], np.int32),
        "guidance": np.array([d[1] for d in drawn], np.float32),
    }
    operands = {
        "key": KEY,
        "score": score,
        "detect": lanes.operand(lambda x, r: x[:, 0]),
        "records": jnp.asarray(target)[None],
        "read": jnp.array([[c[0] for c in components]]),
    }
    out = lanes.run(subspace.guided_paths, chain, operands, batch)
    keys = lanes.lane_keys(KEY, jnp.asarray(batch["uid"]), jnp.asarray(batch["draw"]))
    x = jnp.stack([jax.random.normal(jax.random.fold_in(k, 0), (4,)) for k in keys])
    log_ratio = np.zeros((count, len(components)))
    for j in range(6, 0, -1):
        at = jnp.full((count,), j)
        mean = chain.model_mean(score, x, at)
        forward = chain.posterior_mean(x, jnp.broadcast_to(jnp.asarray(target), x.shape), at)
        lam = jnp.asarray(np.where(j > batch["level"], batch["guidance"], 0.0))[:, None]
        std = float(chain.kernel_std[j])
        new = mean + lam * (forward - mean) + std * step_noise(keys, at, (4,))
        if j > 1:
            host, here, there = (np.asarray(z, np.float64) for z in (new, mean, forward))
            own = stats.norm.logpdf(host, here, std).sum(axis=1)
            for c, (k, guidance) in enumerate(components):
                if j > k:
                    centre = here + guidance * (there - here)
                    log_ratio[:, c] += own - stats.norm.logpdf(host, centre, std).sum(axis=1)
        x = new
    guidance = np.array([c[1] for c in components])
    np.testing.assert_allclose(out["margin"], x[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(guidance * out["a"] + guidance**2 * out["q"] / 2, log_ratio, rtol=2e-4, atol=2e-3)


def test_balance_terms_are_the_mixture_density_ratio() -> None:
    mixture = Mixture((2, 5), (0.5, 1.0), (0.3, 0.5), 0.2)
    a, q = np.array([[0.3, -1.0], [2.0, 900.0]]), np.array([[0.1, 4.0], [3.0, 2000.0]])
    log_w = np.array([0.5, 1.0]) * a + 0.5 * np.array([0.25, 1.0]) * q
    expected = -np.log(0.2 + (np.array([0.3, 0.5]) * np.exp(-log_w)).sum(axis=1))
    np.testing.assert_allclose(balance_terms(mixture, np.array([20, 30, 50]), a, q), expected)
    assert balance_terms(mixture, np.array([20, 30, 50]), a, q).max() <= np.log(1 / 0.2)


@pytest.mark.slow
def test_the_whole_distribution_sums_to_one() -> None:
    """Records of unequal rates (weights 1 to 6, no symmetry) whose cells cover the space. |z| < 4 for the sum and
    for each of 6 against direct counts: false alarm 4.5e-4."""
    truth = GaussianMixture(np.random.default_rng(2).standard_normal((6, 5)), 0.02, np.arange(1.0, 7.0))
    chain, atoms = Chain(VP(), 20), np.asarray(truth.means, np.float32)
    score, detect = truth.score(VP()), atom_models.nearest(atoms)
    mixture = Mixture((6, 6, 10, 12), (0.5, 1.0, 0.75, 0.5), (0.2, 0.2, 0.25, 0.25), 0.1)
    results = estimate(chain, score, detect, atoms, [mixture] * 6, KEY, draws=1000, max_draws=2000)
    values = np.array([r.estimate.value for r in results])
    errors = values * [r.estimate.log_stderr for r in results]
    assert abs(values.sum() - 1) < 4 * np.sqrt((errors**2).sum())
    images = montecarlo.sample(chain, score, (5,), 8000, KEY)
    counted = (montecarlo.margins(detect, images, 6) > 0).mean(axis=0)
    assert np.all(np.abs(values - counted) < 4 * np.hypot(errors, np.sqrt(counted * (1 - counted) / 8000)))


@pytest.mark.parametrize("draws", [100, 101, 1024, 9999])
def test_draws_are_allotted_whole(draws) -> None:
    counts = GOOD.allocate(draws)
    assert counts.sum() == draws
    assert np.all(np.abs(counts - draws * np.array([0.1, 0.2, 0.2, 0.25, 0.25])) < 1)


def test_a_design_takes_the_highest_level_that_reaches_each_target() -> None:
    curve = np.array([1.0, 0.95, np.nan, 0.7, 0.65, 0.2, 0.35, np.nan])
    mixture = design(curve, guidance=(0.5, 1.0))
    assert set(zip(mixture.levels, mixture.guidance, strict=True)) == {(k, g) for k in (2, 5, 7) for g in (0.5, 1.0)}
    assert sum(mixture.share) + mixture.unconditional == pytest.approx(1)
    assert set(design(np.full(8, np.nan)).levels) == {1}
    assert set(design(np.ones(8)).levels) == {8}
    with pytest.raises(ValueError, match="unconditional must lie"):
        design(curve, unconditional=0.0)


def test_mixtures_that_do_not_fit_are_refused() -> None:
    for fields in (((0,), (1.0,), (0.9,), 0.1), ((1,), (1.0,), (0.8,), 0.1), ((1, 2), (1.0,), (0.9,), 0.1)):
        with pytest.raises(ValueError):
            Mixture(*fields)
    chain, score, detect = Chain(VP(), 8), atom_models.atom_score(VP(), ORBIT), atom_models.nearest(ORBIT)
    high, one = Mixture((9,), (1.0,), (0.9,), 0.1), Mixture((3,), (1.0,), (0.9,), 0.1)
    thin = Mixture((3,), (1.0,), (0.9999,), 0.0001)
    for mixtures, draws, ceiling in (([high], 100, 100), ([thin], 100, 100), ([one] * 2, 100, 100), ([one], 99, 100)):
        with pytest.raises(ValueError):
            estimate(chain, score, detect, ORBIT[:1], mixtures, KEY, draws=draws, max_draws=ceiling)
    with pytest.raises(ValueError, match="max_draws"):
        estimate(chain, score, detect, ORBIT[:1], [one], KEY, draws=200, max_draws=100)


@pytest.mark.slow
def test_draws_stop_at_the_first_reliable_round_and_never_pass_the_limit() -> None:
    """A good mixture needs one round; one that looks at the wrong level goes on to the limit, in whole rounds."""
    chain, score, detect = Chain(VP(), STEPS), atom_models.atom_score(VP(), ORBIT), atom_models.nearest(ORBIT)
    records = np.repeat(ORBIT[:1], 2, axis=0)
    bad = Mixture((1,), (1.0,), (0.995,), 0.005)
    first = jax.tree_util.Partial(of_first, detect)
    good, poor = estimate(chain, score, first, records, [GOOD, bad], KEY, draws=800, max_draws=2000, chunk=100)
    assert (good.estimate.n, good.estimate.reliable) == (800, True)
    assert (poor.estimate.n, poor.estimate.reliable) == (1600, False)
    assert poor.estimate.reasons
    assert good.estimate.network_calls == 800 * STEPS


def test_no_hit_leaves_the_limit_of_the_unguided_share() -> None:
    chain, score = Chain(VP(), 8), atom_models.atom_score(VP(), ORBIT)
    mixture = Mixture((3,), (1.0,), (0.75,), 0.25)
    (result,) = estimate(chain, score, atom_models.ball(ORBIT[:1] + 50, 1.0), ORBIT[:1], [mixture], KEY, draws=200)
    assert (result.hits, result.estimate.n, result.estimate.value, result.estimate.lower) == (0, 200, 0.0, 0.0)
    assert result.estimate.upper == intervals.clopper_pearson(0, 50, 0.95)[1]
    assert not result.estimate.reliable


def test_limits_without_a_tail_are_markovs_below_and_those_of_the_unguided_paths_above() -> None:
    """Two rounds of 100, of which 10 each are unguided and one of those is detected; q̂ = .2."""
    hit = np.zeros(100, bool)
    hit[[3, *range(40, 60)]] = True
    pool = [(np.zeros(100), hit), (np.zeros(100), np.roll(hit, 20))]
    lower, upper = subspace._without_tail(GOOD, pool, 100, np.log(0.2), 0.95)
    assert lower == pytest.approx(0.025 * 0.2)
    assert upper == pytest.approx(stats.beta.ppf(0.975, 2, 19))
    assert subspace._without_tail(GOOD, pool, 100, np.log(0.7), 0.95)[1] == pytest.approx(0.7)


def test_no_round_draws_the_paths_of_another() -> None:
    rounds = [subspace._lanes_of([0, 1], [GOOD, LOW], np.array([5, 9]), 100, first, STEPS) for first in (0, 100, 200)]
    seen = [(u, d) for lanes_ in rounds for u, d in zip(lanes_["uid"].tolist(), lanes_["draw"].tolist(), strict=True)]
    assert len(set(seen)) == len(seen) == 600


# The last step only, the guided part, everywhere.
@pytest.mark.parametrize("until", [0.05, *(pytest.param(u, marks=pytest.mark.slow) for u in (0.3, 2.0))])
def test_a_broken_score_raises_wherever_it_breaks(until) -> None:
    """The detector hides it: it calls NaN "not detected"."""
    chain, mixture = Chain(VP(), 25), Mixture((3,), (1.0,), (0.5,), 0.5)
    with pytest.raises(FloatingPointError, match="not finite on a guided path"):
        estimate(chain, atom_models.BrokenScore(until), atom_models.blind, np.ones((1, 3)), [mixture], KEY, draws=100)


@pytest.mark.slow
def test_results_do_not_depend_on_company_chunks_or_devices() -> None:
    chain, score = Chain(VP(), STEPS), atom_models.atom_score(VP(), ORBIT)
    settings = {"draws": 120, "max_draws": 120}
    single = data_mesh(jax.devices()[:1])
    crowd = estimate(chain, score, atom_models.ball(ORBIT, 0.5), ORBIT[:3], [GOOD, LOW, HIGH], KEY, **settings)
    only = np.array([2, 0])
    alone = estimate(
        chain, score, atom_models.ball(ORBIT[only], 0.5), ORBIT[only], [HIGH, GOOD], KEY,
        uids=only, chunk=50, mesh=single, **settings,
    )  # fmt: skip
    for i, r in enumerate(only):
        assert alone[i].hits == crowd[r].hits
        assert alone[i].estimate.log_value == pytest.approx(crowd[r].estimate.log_value, abs=1e-3)


def test_another_model_or_design_of_the_same_shape_does_not_compile_again() -> None:
    chain, traces = Chain(VP(), 7), []

    def counting(atoms, x, t):
        traces.append(1)
        return atom_models.AtomScore(VP())(atoms, x, t)

    values = []
    for scale in (1.0, 0.2):
        score = jax.tree_util.Partial(counting, jnp.asarray(scale * ORBIT, jnp.float32))
        # h that falls from 1 to 0 at one level makes a design of three components, one that falls slowly nine.
        mixture = design(np.array([1, 1, 1, 0, 0, 0, 0.0]) if scale == 1.0 else np.array([1, 0.7, 0.4, 0, 0, 0, 0]))
        (result,) = estimate(
            chain, score, atom_models.ball(ORBIT, 0.5), ORBIT[:1], [mixture], KEY, draws=100, max_draws=100
        )
        values.append(result.hits)
        if scale == 1.0:
            compiled = len(traces)
    assert compiled >= 1
    assert len(traces) == compiled
    assert values[0] > 0 == values[1]


VPS = [
    (10, 2, 50), (50, 2, 100), (10, 16, 500), (100, 16, 50), (300, 16, 50), (100, 64, 50), (20, 4, 500), (10, 8, 250),
    (30, 2, 300), (100, 256, 100), (1000, 64, 50), (1000, 128, 50),
]  # fmt: skip
SHAPES = [
    *[(Chain(VP(), j), n, d, 1e-4) for n, d, j in VPS],
    *[(Chain(SubVP(), j), n, d, 0.01) for n, d, j in ((200, 64, 50), (20, 8, 100), (10, 2, 200))],
    *[(Chain(VE(0.01, 20.0), j), n, d, 0.01) for n, d, j in ((200, 64, 50), (20, 8, 100), (10, 4, 500))],
    *[(Chain(DDPM(1000), j), n, d, 0.01) for n, d, j in ((200, 64, 100), (10, 2, 1000), (100, 128, 50))],
    *[(Chain(DDPM(1000, "cosine"), j), n, d, 0.01) for n, d, j in ((200, 64, 100), (20, 8, 50), (10, 4, 400))],
    (Chain(VP(), 50, "euler_maruyama"), 50, 16, 0.01),
]


def audited(chain: Chain, n: int, d: int, var: float, seed: int):
    """One oracle by the public path: pilot curve, design, estimate with the default number of draws."""
    atoms = cyclic_orbit(n, d, seed)
    score, detect = atom_models.atom_score(chain.sde, atoms, var), atom_models.nearest(atoms)
    levels = np.unique(np.maximum(1, np.round(np.linspace(0.01, 0.9, 24) * chain.steps).astype(int)))
    pilot, main = jax.random.split(jax.random.key(seed))
    (curve,) = tprime.h_curves(chain, score, detect, atoms[:1], levels, 32, pilot)
    (result,) = estimate(chain, score, detect, atoms[:1], [design(curve.by_level)], main)
    return result.estimate


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_reliable_intervals_cover_in_500_oracles() -> None:
    """25 shapes x 20 seeds; every seed has its own atoms and noise.

    At a true coverage of .95 fewer than 93 % of 480 cover with probability .02; at the .965 seen while this was
    written, 4e-5. Fixed seeds: a given machine sees one outcome.
    """
    reliable, covered, relative = [], [], []
    for chain, n, d, var in SHAPES:
        for seed in range(20):
            found = audited(chain, n, d, var, seed)
            reliable.append(found.reliable)
            covered.append(found.lower <= 1 / n <= found.upper)
            relative.append(n * found.value - 1)
        last = slice(-20, None)
        print(
            f"{type(chain.sde).__name__} {chain.kernel} n={n} d={d} J={chain.steps}: reliable "
            f"{np.mean(reliable[last]):.2f}, covered {np.mean(covered[last]):.2f}, error {np.mean(relative[last]):+.3f}"
        )
    sure = np.array(reliable)
    print(f"reliable {sure.mean():.3f}, covered {np.mean(np.array(covered)[sure]):.4f} of {sure.sum()}")
    assert len(sure) == 500
    assert sure.mean() >= 0.8
    assert np.mean(np.array(covered)[sure]) >= 0.93
