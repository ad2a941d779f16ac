"""E3 on orbits whose rates are exactly 1/n: prior, score and every map commute with the group, whatever the steps."""

from __future__ import annotations

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from oracles import atom_models
from oracles.gaussian_mixture import GaussianMixture
from oracles.group_code import cyclic_orbit

from diffusion_privacy.anonymity import change_of_variables, transport, weights
from diffusion_privacy.anonymity.change_of_variables import estimate, h_curves
from diffusion_privacy.anonymity.subspace import Mixture, balance_terms, design
from diffusion_privacy.anonymity.transport import Continuous, Discrete
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.samplers import Sampler, prior, sample
from diffusion_privacy.diffusion.sde import VE, VP
from diffusion_privacy.errors import InputError

KEY = jax.random.key(0)
ORBIT = cyclic_orbit(8, 4, seed=0)
SCORE = atom_models.atom_score(VP(), ORBIT, 0.01)
CHAIN = Chain(VP(), 12)
DDIM = Discrete(CHAIN)
MIX = Mixture((2, 3, 6), (1.0,) * 3, (0.3,) * 3, 0.1)
RUNS = 60


def first_only(detect, x, number):
    return detect(x, jnp.zeros_like(number))


def repeated(sampler, score, detect, record, mixture=MIX, runs=RUNS, draws=60, key=KEY):
    records = np.repeat(np.asarray(record, np.float32)[None], runs, axis=0)
    return estimate(
        sampler, score, Partial(first_only, detect), records, [mixture] * runs, key, draws=draws, chunk=1024
    )


def z_score(results, truth: float) -> float:
    values = np.array([r.estimate.value for r in results])
    return float((values.mean() - truth) / (values.std(ddof=1) / np.sqrt(len(values))))


FLOW = Mixture((8, 12, 18), (1.0,) * 3, (0.3,) * 3, 0.1)
CASES = {
    "ddim": (DDIM, ORBIT, MIX),
    "ddim, wrong score": (DDIM, 0.7 * ORBIT + 0.5 * np.roll(ORBIT, 1, axis=0), MIX),
    "heun": (Discrete(CHAIN, "ode_heun"), ORBIT, MIX),
    "ve": (Discrete(Chain(VE(0.01, 20.0), 12)), ORBIT, MIX),
    "flow, exact": (Continuous(Chain(VP(), 32, spacing="log_snr"), "exact"), ORBIT, FLOW),
}
cases = [pytest.param(*c, id=n, marks=[] if n == "ddim" else pytest.mark.slow) for n, c in CASES.items()]


@pytest.mark.parametrize(("sampler", "known", "mixture"), cases)
def test_unbiased_over_60_runs(sampler, known, mixture) -> None:
    """|z| < 3.5 with 60 runs: false alarm 5e-4 a case, if normal. 60 draws a run are few: coverage is tested apart."""
    score = atom_models.atom_score(sampler.chain.sde, known, 0.01)
    results = repeated(sampler, score, atom_models.nearest(ORBIT), ORBIT[0], mixture)
    assert abs(z_score(results, 1 / 8)) < 3.5
    assert all(r.failed == 0 and r.folded == 0 and r.probe_bias == 0 for r in results)
    assert max(r.residual for r in results) < 0.05


FAULTS = {
    "Jacobian forgotten": (change_of_variables.transport_paths, "log_p - new.log_det", "log_p"),
    "weight with the wrong σ": (
        change_of_variables.transport_paths,
        "_log_normal(x, expand(alpha, x) * target, sigma)",
        "_log_normal(x, expand(alpha, x) * target, 1.2 * sigma)",
    ),
}
faults = [pytest.param(*f, id=n, marks=pytest.mark.slow) for n, f in FAULTS.items()]


@pytest.mark.parametrize(("function", "right", "wrong"), faults)
def test_planted_faults_are_rejected(monkeypatch, function, right, wrong) -> None:
    """The statistic of the test above goes beyond 5."""
    source = inspect.getsource(function)
    assert source.count(right) == 1, "the line that this fault is planted in has changed: plant it anew"
    namespace = dict(vars(change_of_variables))
    exec(compile("from __future__ import annotations\n" + source.replace(right, wrong), "fault", "exec"), namespace)
    monkeypatch.setattr(change_of_variables, function.__name__, namespace[function.__name__])
    assert abs(z_score(repeated(DDIM, SCORE, atom_models.nearest(ORBIT), ORBIT[0]), 1 / 8)) > 5


@pytest.mark.slow
def test_steps_are_the_samplers_own_and_inverses_find_back() -> None:
    """Step by step from the prior: the image of `samplers.sample`; up again: the points passed."""
    sampler = DDIM
    keys = jax.random.split(KEY, 16)
    want = jax.jit(lambda k: sample(SCORE, VP(), Sampler("ddim", 12), k, (4,)))(keys)
    down = jax.jit(lambda x, at: sampler.down(SCORE, x, at, keys))
    step, up = jax.jit(lambda x, at: sampler.step(SCORE, x, at)), jax.jit(lambda x, at: sampler.up(SCORE, x, at))
    x = prior(VP(), keys, (4,))
    for level in range(12, 0, -1):
        at = jnp.full(16, level)
        new = step(x, at)
        if level > 1:
            moved = down(x, at)
            np.testing.assert_allclose(moved.x, new, rtol=1e-5, atol=1e-5)
            assert np.all(np.asarray(moved.sign) == 1)
            back = up(new, at)
            assert np.all(back.found)
            np.testing.assert_allclose(back.x, x, atol=2e-3)
        x = new
    np.testing.assert_allclose(x, want, rtol=1e-4, atol=1e-4)


def test_the_determinant_of_a_linear_step() -> None:
    """One Gaussian: the score is linear, the step is c·x + b, and its log-determinant d·log c."""
    mean, var = np.array([[0.4, -0.3, 0.2]]), 0.5
    score = atom_models.atom_score(VP(), mean, var)
    at, x = jnp.full(2, 7), jnp.ones((2, 3)) * jnp.array([[0.3], [-1.1]])
    a, s, a1, s1 = CHAIN.alpha[7], CHAIN.sigma[7], CHAIN.alpha[6], CHAIN.sigma[6]
    total = a**2 * var + s**2
    slope = s1 / s + (a1 - s1 * a / s) * a * var / total
    found = jax.jit(lambda x: DDIM.down(score, x, at, jax.random.split(KEY, 2)))(x)
    np.testing.assert_allclose(found.log_det[:, 0], 3 * np.log(slope), rtol=1e-5)


def test_the_determinant_of_the_flow_holds_its_change_of_scale() -> None:
    """One Gaussian under VE, whose scale grows: x moves in proportion to √(v + σ²), each of two values."""
    sde, var = VE(0.01, 5.0), 0.5
    chain = Chain(sde, 24, spacing="log_snr")
    flow, score = Continuous(chain, "exact"), atom_models.atom_score(sde, np.zeros((1, 2)), var)
    x, at = jnp.array([[0.7, -1.2]]), jnp.array([12])
    found = jax.jit(lambda x: flow.down(score, x, at, jax.random.split(KEY, 1)))(x)
    here, there = (var + chain.sigma[level] ** 2 for level in (12, 11))
    np.testing.assert_allclose(found.log_det[0, 0], np.log(there / here), rtol=1e-3)
    np.testing.assert_allclose(found.x, x * np.sqrt(there / here), rtol=1e-3)


@pytest.mark.slow
def test_coverage_of_reliable_intervals() -> None:
    """120 runs of 512 draws; at .95 fewer than 107 cover once in 300 tests; the envelope covers more."""
    results = repeated(DDIM, SCORE, atom_models.nearest(ORBIT), ORBIT[0], runs=120, draws=512)
    sure = [r.estimate for r in results if r.estimate.reliable]
    assert len(sure) > 60
    assert np.mean([e.lower <= 1 / 8 <= e.upper for e in sure]) >= 107 / 120


@pytest.mark.slow
def test_ddim_against_brute_force() -> None:
    """No symmetry: unequal weights, a ball, ten steps. 60,000 direct DDIM samples; |z| < 4 with both errors."""
    means = np.random.default_rng(3).normal(size=(4, 3))
    score = GaussianMixture(means, 0.15, np.array([1.0, 2.0, 3.0, 4.0])).score(VP())
    keys = jax.random.split(KEY, 30_000)
    images = np.asarray(jax.jit(lambda k: sample(score, VP(), Sampler("ddim", 10), k, (3,)))(keys))
    hits = int(np.sum(np.linalg.norm(images - means[0], axis=1) < 0.3))
    truth = hits / 30_000
    assert 0.005 < truth < 0.1
    sampler, detect = Discrete(Chain(VP(), 10)), atom_models.ball(means[:1], 0.3)
    curves = h_curves(sampler, score, detect, means[:1], np.arange(1, 11), 32, KEY)
    mixture = design(curves[0], guidance=(1.0,))
    (result,) = estimate(sampler, score, detect, means[:1], [mixture], KEY, draws=2000, chunk=512)
    found = result.estimate
    assert found.reliable, found.reasons
    assert abs(found.value - truth) < 4 * np.hypot(found.value * found.log_stderr, np.sqrt(hits) / 30_000)


@pytest.mark.slow
def test_a_hundred_atoms_in_784_values() -> None:
    """The flow with Hutchinson's probes on an exact mixture: q = .01, and the probes' bias is seen and said."""
    atoms = cyclic_orbit(100, 784, seed=0)
    score, detect = atom_models.atom_score(VP(), atoms, 0.01), atom_models.nearest(atoms)
    flow = Continuous(Chain(VP(), 64, spacing="log_snr"), probes=16)
    (result,) = estimate(flow, score, detect, atoms[:1], [Mixture((36,), (1.0,), (0.96,), 0.04)], KEY, draws=48)
    assert result.hits >= 46
    assert abs(np.log(result.estimate.value / 0.01)) < 0.15
    assert 0.005 < result.probe_bias < 0.2


def folding(x, t):
    """Pushes apart so hard that a step's Jacobian turns negative on one axis."""
    return -x * jnp.array([1.0, 3.0])


@pytest.mark.slow
def test_maps_that_fold_or_have_no_way_up_are_not_trusted() -> None:
    mixture = Mixture((3,), (1.0,), (0.9,), 0.1)
    detect = atom_models.ball(np.zeros((1, 2)), 100.0)
    (result,) = estimate(DDIM, folding, detect, np.zeros((1, 2)), [mixture], KEY, draws=40)
    assert result.folded > 0
    assert not result.estimate.reliable
    assert any("folds" in r for r in result.estimate.reasons)
    assert result.estimate.lower < result.estimate.value * 0.03


def test_limits_that_allow_for_what_went_wrong() -> None:
    """Worked by hand on made-up draws: probes' bias lowers the lower limit, failed climbs raise the upper one."""
    mixture, counts = Mixture((3,), (1.0,), (0.5,), 0.5), np.array([500, 500])
    rng = np.random.default_rng(0)
    out = {
        "margin": np.ones(1000),
        "log_w": 0.1 * rng.standard_normal((1000, 1)),
        "stderr": np.zeros((1000, 1)),
        "found": np.ones(1000, bool),
        "folded": np.zeros(1000, bool),
        "residual": np.zeros(1000),
        "climb_calls": np.ones(1000, int),
    }

    def result(**changes):
        return change_of_variables._result(mixture, counts, {**out, **changes}, 0.95, 10)

    plain = result()
    assert plain.estimate.reliable
    assert plain.estimate.network_calls == 11_000
    noisy = result(stderr=np.full((1000, 1), 0.3))
    # Half of a term moves with its log w: (½·.3)²/2.
    assert noisy.probe_bias == pytest.approx(0.01125, rel=0.05)
    assert noisy.estimate.lower == pytest.approx(plain.estimate.lower * np.exp(-noisy.probe_bias))
    loud = result(stderr=np.full((1000, 1), 1.0)).estimate
    assert (loud.reliable, loud.lower) == (False, 0.0)
    found = np.arange(1000) >= 5
    some = result(found=found)
    assert (some.hits, some.estimate.reliable, some.failed) == (995, True, 0.005)
    assert some.estimate.upper == 1.0
    for change in ({"found": np.arange(1000) >= 50}, {"residual": np.full(1000, 0.2)}, {"folded": ~found}):
        assert not result(**change).estimate.reliable


def test_climbs_that_failed_raise_the_upper_limit() -> None:
    """5 of 1,000 found no way up: each could have been a hit as heavy as the heaviest."""
    mixture, counts = Mixture((3,), (1.0,), (0.5,), 0.5), np.array([500, 500])
    found, margin = np.arange(1000) >= 5, np.where(np.arange(1000) % 4 == 0, 1.0, -1.0)
    log_w = 0.1 * np.random.default_rng(0).standard_normal((1000, 1))
    blank = np.zeros(1000)
    out = {
        "margin": margin, "log_w": log_w, "stderr": blank[:, None], "found": found, "folded": blank > 0,
        "residual": blank, "climb_calls": np.ones(1000, int),
    }  # fmt: skip
    result = change_of_variables._result(mixture, counts, out, 0.95, 10).estimate
    terms, hit = balance_terms(mixture, counts, log_w, np.zeros((1000, 1))), (margin > 0) & found
    mean = weights.weighted_mean(terms, hit, 0.95)
    assert result.reliable
    assert result.upper == pytest.approx(mean.upper + 0.005 * np.exp(terms[hit].max()))
    assert result.upper < 1


@dataclasses.dataclass(frozen=True)
class Still:
    """A sampler that moves nothing, with four estimates of each step's log-determinant: 0, 1, 2 and 3 tenths."""

    chain: Chain
    columns: int = 4

    def step(self, score, x, level):
        return x

    def down(self, score, x, level, keys):
        return transport.Down(x, jnp.broadcast_to(0.1 * jnp.arange(4.0), (x.shape[0], 4)), jnp.ones(x.shape[0]))

    def up(self, score, x, level):
        rows = x.shape[0]
        return transport.Inverse(x, jnp.ones(rows, bool), jnp.zeros(rows, bool), jnp.zeros(rows, int))


def test_the_error_of_the_probes_is_that_of_their_mean() -> None:
    """A weight read k steps below the top moves by k times 0 … .3: standard error k · .1 · √(5/3)/√4."""
    batch = {"record": np.zeros(2, int), "uid": np.zeros(2, int), "level": np.array([2, 5]), "draw": np.arange(2)}
    operands = {
        "key": KEY, "score": None, "detect": lambda x, record: x[:, 0], "records": jnp.zeros((1, 3)),
        "read": jnp.array([[2, 4]]),
    }  # fmt: skip
    paths = jax.jit(lambda batch: change_of_variables.transport_paths(Still(Chain(VP(), 5)), operands, batch))
    out = paths(batch)
    np.testing.assert_allclose(out["stderr"], np.tile(0.1 * np.sqrt(5 / 3) / 2 * np.array([3, 1]), (2, 1)), rtol=1e-4)


def test_detectors_that_never_fire() -> None:
    far = atom_models.nearest(np.concatenate([ORBIT[:1] + 50, ORBIT[1:]]))
    results = repeated(DDIM, SCORE, far, ORBIT[0])
    assert all(r.estimate.value == 0 and r.estimate.lower == 0 and not r.estimate.reliable for r in results)
    # Six plain samples without a hit: the exact limit.
    assert results[0].estimate.upper == pytest.approx(1 - 0.025 ** (1 / 6))


# Where the way down ends; where the climb begins.
@pytest.mark.slow
@pytest.mark.parametrize("until", [0.12, 0.3])
def test_a_broken_score_raises_wherever_it_breaks(until) -> None:
    mixture, score = Mixture((3,), (1.0,), (0.9,), 0.1), atom_models.BrokenScore(until)
    with pytest.raises(FloatingPointError, match="margin not finite"):
        estimate(DDIM, score, atom_models.blind, np.ones((1, 3)), [mixture], KEY, draws=20)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="1024 values"):
        estimate(DDIM, SCORE, atom_models.blind, np.zeros((1, 33, 32)), [MIX], KEY)
    for mixture in (Mixture((13,), (1.0,), (0.9,), 0.1), Mixture((3,), (0.5,), (0.9,), 0.1)):
        with pytest.raises(InputError, match="mixture"):
            estimate(DDIM, SCORE, atom_models.blind, ORBIT[:1], [mixture], KEY)
    with pytest.raises(InputError, match="draws"):
        estimate(DDIM, SCORE, atom_models.blind, ORBIT[:1], [MIX], KEY, draws=3)
    with pytest.raises(InputError, match="one a record"):
        estimate(DDIM, SCORE, atom_models.blind, ORBIT[:1], [MIX] * 2, KEY)
    for make in (
        lambda: Discrete(CHAIN, "ancestral"),
        lambda: Discrete(Chain(VP(), 12, clip_x0=True), "ode_heun"),
        lambda: Continuous(CHAIN, probes=2),
        lambda: Continuous(CHAIN, "approximate"),
        lambda: Continuous(Chain(VP(), 12, clip_x0=True)),
    ):
        with pytest.raises(InputError):
            make()
    assert transport.MAX_DIM >= 784
