"""The reverse chain against Bayes' rule and against the Gaussian whose chain is linear."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.diffusion import chain as chains
from diffusion_privacy.diffusion.chain import KERNELS, SPACINGS, Chain, time_grid
from diffusion_privacy.diffusion.sde import DDPM, VE, VP, SubVP

SDES = {
    "vp": VP(),
    "subvp": SubVP(),
    "ve": VE(0.01, 20.0),
    "linear": DDPM(1000),
    "cosine": DDPM(1000, "cosine"),
}
each_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
MEAN, STD = 0.4, 0.3


@each_sde
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_grid_climbs_from_0_to_1(sde, spacing) -> None:
    # The clipped last steps of the cosine schedule hold a third of its log SNR and leave room for few equal steps.
    steps = 4 if sde == DDPM(1000, "cosine") and spacing == "log_snr" else 12
    times = time_grid(sde, steps, spacing)
    assert times.shape == (steps + 1,)
    assert times.dtype == np.float64
    assert times[0] == 0
    assert times[-1] == 1
    assert np.all(np.diff(times) > 0)


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE()], ids=["vp", "subvp", "ve"])
def test_log_snr_spacing_takes_equal_steps_of_log_snr(sde) -> None:
    times = time_grid(sde, 20, "log_snr")
    with jax.enable_x64(True):
        t = jnp.asarray(times[1:])
        steps = np.diff(2 * np.log(np.asarray(sde.alpha(t)) / np.asarray(sde.sigma(t))))
    assert times[1] == pytest.approx(sde.t_min)
    # Linear interpolation on 20,000 cells, coarsest in relative terms next to t_min.
    np.testing.assert_allclose(steps, steps.mean(), rtol=2e-3)


def test_a_discrete_schedule_is_visited_at_its_own_times() -> None:
    for steps in (2, 7, 300, 999, 1000):
        index = time_grid(DDPM(1000), steps) * 1000
        np.testing.assert_array_equal(index, np.round(index))
        assert len(np.unique(index)) == steps + 1


@pytest.mark.parametrize(("steps", "spacing"), [(1001, "uniform"), (200, "quadratic"), (200, "log_snr")])
def test_more_steps_than_a_discrete_schedule_has_are_refused(steps, spacing) -> None:
    with pytest.raises(ValueError, match="do not fit a schedule of 1000"):
        time_grid(DDPM(1000), steps, spacing)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="spacing must be one of"):
        time_grid(VP(), 10, "linear")
    with pytest.raises(ValueError, match="at least 2 steps"):
        time_grid(VP(), 1)
    with pytest.raises(ValueError, match="kernel must be one of"):
        Chain(VP(), 10, "ddim")
    with pytest.raises(ValueError, match="clip_x0 needs"):
        Chain(VP(), 10, "euler_maruyama", clip_x0=True)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"variance": "learned"}, "variance must be one of"),
        ({"variance": "forward", "kernel": "euler_maruyama"}, "variance='forward' needs"),
        ({"clip_range": 0.0}, "clip_range must be positive"),
        ({"visits": (1, 2, 3)}, "visits must be 2 >= 2 ascending levels in 1 … 1000, got 3"),
        ({"visits": (5, 5)}, "visits must be"),
        ({"visits": (0, 5)}, "visits must be"),
        ({"visits": (5, 1001)}, "visits must be"),
        ({"sde": VP(), "visits": (5, 10)}, "visits need a DDPM"),
    ],
)
def test_settings_of_a_given_sampler_that_do_not_fit_are_refused(fields, named) -> None:
    with pytest.raises(ValueError, match=named):
        Chain(**{"sde": DDPM(1000), "steps": 2, **fields})


@dataclasses.dataclass(frozen=True)
class Own(VP):
    """A process of one's own with α and σ of a given form."""

    a: Callable[[jax.Array], jax.Array | float] = lambda t: 1 - 0.9 * t
    s: Callable[[jax.Array], jax.Array | float] = lambda t: t

    def alpha(self, t):
        return self.a(t)

    def sigma(self, t):
        return self.s(t)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"s": lambda t: 0.01 * 5000**t}, "Own.sigma: expected 0 at t = 0, the data themselves, got 0.01"),
        ({"a": lambda t: 1 - t}, "Own.alpha: expected 1e-08 or more, got 0"),
        ({"a": lambda t: 1.0}, "Own.alpha: expected a finite number for each time"),
        ({"s": lambda t: jnp.sqrt(0.5 - t)}, "Own.sigma: expected a finite number for each time"),
        ({"s": lambda t: t * (1.4 - t)}, "Own: expected σ/α to rise with t, it does not above t = 0.7"),
    ],
)
def test_a_process_that_breaks_what_samplers_take_for_granted_is_refused(fields, named) -> None:
    chain = Chain(Own(**{"a": jnp.ones_like, **fields}), 10)
    with pytest.raises(ValueError, match=named):
        chain.posterior  # noqa: B018
    assert Chain(Own(), 10).kernel_std[1] == 0


def test_a_chain_stops_where_it_is_told_to() -> None:
    chain = Chain(DDPM(1000), 4, visits=(1, 251, 501, 751))
    np.testing.assert_allclose(chain.times, [0, 0.001, 0.251, 0.501, 0.751])
    np.testing.assert_allclose(chain.alpha[2], np.sqrt(np.prod(1 - DDPM(1000).betas[:251])))
    a, c, b = (table[3] for table in chain.posterior)
    mean, std = bayes(chain, 3, 0.7, -0.4)
    assert a * 0.7 - c * 0.4 == pytest.approx(mean, rel=1e-9)
    assert b == pytest.approx(std, rel=1e-9)


def test_the_forward_variance_is_that_of_the_noise_that_was_added() -> None:
    """Ho et al., section 3.2: with all steps it is β itself; the posterior's is smaller."""
    large = Chain(DDPM(50), 50, variance="forward")
    np.testing.assert_allclose(large.kernel_std[2:] ** 2, DDPM(50).betas[1:], rtol=1e-6)
    assert large.kernel_std[1] == 0
    assert np.all(large.kernel_std[2:] > Chain(DDPM(50), 50).kernel_std[2:])


def test_the_estimate_is_clipped_to_the_given_range() -> None:
    chain = Chain(DDPM(50), 50, clip_x0=True, clip_range=0.25)
    x0 = chain.predict_x0(jnp.zeros((1, 2)), jnp.array([[0.1, -3.0]]), jnp.array([1]))
    np.testing.assert_allclose(x0, [[0.1 / chain.alpha[1], -0.25]], rtol=1e-6)


def bayes(chain: Chain, j: int, x: float, x0: float) -> tuple[float, float]:
    """Mean and standard deviation of x_{j−1} given x_j and x_0, from prior times likelihood."""
    a = chain.alpha[j] / chain.alpha[j - 1]
    v = chain.sigma[j] ** 2 - (a * chain.sigma[j - 1]) ** 2
    precision = 1 / chain.sigma[j - 1] ** 2 + a**2 / v
    return (chain.alpha[j - 1] * x0 / chain.sigma[j - 1] ** 2 + a * x / v) / precision, precision**-0.5


@each_sde
def test_the_posterior_is_bayes_rule(sde) -> None:
    chain = Chain(sde, 17)
    x, x0 = 0.7, -0.4
    for j in range(2, 18):
        mean, std = bayes(chain, j, x, x0)
        a, c, b = (table[j] for table in chain.posterior)
        assert a * x + c * x0 == pytest.approx(mean, rel=1e-9)
        assert b == pytest.approx(std, rel=1e-9)
        device = chain.posterior_mean(jnp.full((1, 1), x), jnp.full((1, 1), x0), jnp.array([j]))
        assert float(device[0, 0]) == pytest.approx(mean, rel=1e-5, abs=1e-6)
    assert chain.posterior[0][1] == 0
    assert chain.posterior[1][1] == pytest.approx(1)


@each_sde
@pytest.mark.parametrize("kernel", KERNELS)
def test_only_the_last_step_is_noiseless(sde, kernel) -> None:
    std = Chain(sde, 25, kernel).kernel_std
    assert std[1] == 0
    assert np.all(std[2:] > 0)
    assert np.all(np.isfinite(std))


def test_euler_maruyama_noise_is_g_root_dt() -> None:
    chain = Chain(VP(), 40, "euler_maruyama")
    beta = 0.1 + 19.9 * chain.times
    np.testing.assert_allclose(chain.kernel_std[2:], np.sqrt(beta[2:] / 40), rtol=1e-9)


def gaussian_score(sde):
    def score(x, t):
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return -(x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)

    return score


def gaussian_moments(chain: Chain) -> tuple[float, float]:
    """Mean and variance of x_0 of the chain as run on the score of N(MEAN, STD²): every step is affine in x."""
    mean, var = 0.0, chain.sde.prior_std**2
    times = jnp.asarray(chain.times, jnp.float32)
    drift, g = (np.asarray(z, np.float64) for z in chain.sde.coefficients(jnp.ones((len(times), 1)), times))
    for j in range(chain.steps, 0, -1):
        alpha, sigma = chain.alpha[j], chain.sigma[j]
        total = (alpha * STD) ** 2 + sigma**2
        if chain.kernel == "ancestral":
            gain, shift = alpha * STD**2 / total, sigma**2 * MEAN / total
            if j == 1:
                slope, offset, std = gain, shift, 0.0
            else:
                offset, std = bayes(chain, j, 0.0, shift)
                slope = bayes(chain, j, 1.0, gain)[0]
        else:
            dt = chain.times[j] - chain.times[j - 1]
            g2 = g[j] ** 2
            slope = 1 - (drift[j, 0] + g2 / total) * dt
            offset, std = g2 * alpha * MEAN / total * dt, np.sqrt(g2 * dt) if j > 1 else 0.0
        mean, var = slope * mean + offset, slope**2 * var + std**2
    return mean, var


@pytest.mark.parametrize(
    ("sde", "kernel"),
    # A program each: two on every run, all with the slow oracles.
    [
        pytest.param(sde, kernel, id=f"{name}-{kernel}", marks=[] if name == "vp" else pytest.mark.slow)
        for name, sde in SDES.items()
        for kernel in KERNELS
    ],
)
def test_samples_have_the_moments_of_the_chain_as_run(sde, kernel) -> None:
    """False alarm: 10 cases x 2 statistics beyond 4.5 standard errors, 1.4e-4 in all."""
    if kernel == "euler_maruyama" and isinstance(sde, VE):
        # Uniform Euler steps of a variance that doubles every step are not stable on 30 steps.
        chain = Chain(sde, 200, kernel)
    else:
        chain = Chain(sde, 30, kernel)
    count = 20_000
    keys = jax.random.split(jax.random.key(1), count)
    x = sde.prior_sample(jax.random.key(2), (count, 1))
    x0 = jax.jit(lambda k, z: chains.run(chain, gaussian_score(sde), k, z, jnp.full((count,), chain.steps)))(keys, x)
    mean, var = gaussian_moments(chain)
    got = np.asarray(x0, np.float64)[:, 0]
    assert abs(got.mean() - mean) < 4.5 * np.sqrt(var / count)
    assert abs(got.var() / var - 1) < 4.5 * np.sqrt(2 / count)


@each_sde
@pytest.mark.parametrize("kernel", KERNELS)
def test_many_steps_reach_the_data_distribution(sde, kernel) -> None:
    """The error shrinks from 250 to 1000 steps unless it is already below 1 % (discrete schedules: their own error)."""
    errors = []
    for steps in (250, 1000):
        mean, var = gaussian_moments(Chain(sde, steps, kernel))
        errors.append(abs(mean - MEAN) + abs(np.sqrt(var) - STD))
    assert errors[1] < 0.03 * STD
    assert errors[1] < 0.5 * errors[0] or errors[1] < 0.01 * STD


def test_start_levels_may_be_mixed() -> None:
    chain = Chain(VP(), 9)
    keys = jax.random.split(jax.random.key(3), 6)
    x = jax.random.normal(jax.random.key(4), (6, 3, 2))
    level = np.array([0, 9, 1, 4, 9, 2])
    score = lambda z, t: -z * (1 + t[:, None, None])  # noqa: E731
    run = jax.jit(lambda k, z, j: chains.run(chain, score, k, z, j))
    together = run(keys, x, jnp.asarray(level))
    for i, start in enumerate(level):
        alone = run(keys[i : i + 1], x[i : i + 1], jnp.array([start]))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(together[0], x[0])


def test_noise_belongs_to_the_image_and_the_level() -> None:
    keys = jax.random.split(jax.random.key(5), 4)
    level = jnp.array([3, 3, 2, 1])
    noise = chains.step_noise(keys, level, (5,))
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(chains.step_noise(keys[order], level[order], (5,)), noise[order])
    assert not np.allclose(chains.step_noise(keys[:1], jnp.array([4]), (5,)), noise[:1])
    assert not np.allclose(noise[0], noise[1])


def test_clipping_acts_on_the_estimate_of_x0() -> None:
    x, level = jnp.array([[3.0], [0.2]]), jnp.array([5, 5])
    score = lambda z, t: 0.0 * z  # noqa: E731
    free, clipped = (Chain(VP(), 10, clip_x0=clip) for clip in (False, True))
    raw = free.predict_x0(jnp.zeros_like(x), x, level)
    assert float(raw[0, 0]) > 1
    a, c, _ = (float(table[5]) for table in free.posterior)
    np.testing.assert_allclose(clipped.model_mean(score, x, level), a * x + c * np.clip(raw, -1, 1), rtol=1e-5)
    np.testing.assert_allclose(free.model_mean(score, x, level), a * x + c * raw, rtol=1e-5)
    out = chains.run(clipped, score, jax.random.split(jax.random.key(0), 2), x, level)
    assert float(jnp.max(jnp.abs(out))) <= 1


def test_tables_first_read_under_jit_are_the_same_and_equal_chains_are_one_key() -> None:
    fresh = Chain(SubVP(), 12, "euler_maruyama")
    inside = jax.jit(lambda level: chains.take(fresh.kernel_std, level))(jnp.arange(13))
    np.testing.assert_array_equal(inside, np.float32(Chain(SubVP(), 12, "euler_maruyama").kernel_std))
    assert Chain(DDPM(100), 10) == Chain(DDPM(100), 10)
    assert hash(Chain(DDPM(100), 10)) == hash(Chain(DDPM(100), 10))
