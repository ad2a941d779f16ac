"""Private gradient descent and DP-Pix: clipping by hand, accounting by dp-accounting, measured ε, planted faults."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import dp_gradient, pixelise
from diffusion_privacy.mechanisms.accounting import Spend, account
from diffusion_privacy.training import rng as streams
from diffusion_privacy.training.gradients import CLIP_MARGIN


def _loss(params, x, y):
    return -jax.nn.log_softmax(x @ params["w"] + params["b"])[y]


def _problem(n=13):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.zeros(3)}
    return params, jnp.asarray(rng.normal(size=(n, 4)) * 3, jnp.float32), jnp.asarray(rng.integers(0, 3, n))


@pytest.mark.parametrize("chunk", [4, 13, 64])
def test_every_gradient_is_clipped_by_itself(chunk):
    params, x, y = _problem()
    got = dp_gradient.clipped_sum(_loss, params, x, y, 0.5, chunk)
    want = jax.tree.map(jnp.zeros_like, params)
    for i in range(len(x)):
        g = jax.grad(_loss)(params, x[i], y[i])
        norm = float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(g))))
        scale = min(1.0, 0.5 * (1 - CLIP_MARGIN) / norm)
        want = {name: want[name] + scale * g[name] for name in want}
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_replacing_a_record_moves_the_sum_by_at_most_twice_the_clip():
    params, x, y = _problem()
    other = x.at[0].set(-1000.0)
    sums = [dp_gradient.clipped_sum(_loss, params, v, y, 0.5, 8) for v in (x, other)]
    moved = jnp.sqrt(sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, sums), strict=True)))
    assert 0.1 < float(moved) <= 1.0 + 1e-5


@pytest.mark.parametrize("bad", [5, 12])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25])
def test_a_record_that_is_not_finite_adds_nothing(bad, value):
    """The last of 13 is the one that fills up the last chunk. Of 1e25 the gradient is finite and its norm is not."""
    params, x, y = _problem()
    got = dp_gradient.clipped_sum(_loss, params, x.at[bad].set(value), y, 0.5, 4)
    rest = np.delete(np.arange(13), bad)
    want = dp_gradient.clipped_sum(_loss, params, x[rest], y[rest], 0.5, 4)
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("clip", [0.0, 1e-13, np.inf, np.nan])
def test_a_norm_at_which_nothing_would_be_clipped_is_refused(clip):
    with pytest.raises(InputError, match="clip: expected a finite number, at least 1e-12"):
        dp_gradient.clipped_sum(_loss, *_problem(), clip, 4)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_the_noise_is_that_of_private_training_and_rounded_like_it():
    """Records that pull nothing leave the noise alone: the law of `rng.unit_gaussian`, on the grid of `rng.add`."""
    key, multiplier, clip = jax.random.key(3), 5.0, 0.5
    params = {"a": jnp.zeros(300), "b": jnp.zeros((4, 25))}
    x, y = jnp.ones((8, 1)), jnp.zeros(8, jnp.int32)
    left = dp_gradient.descend(
        lambda params, x, y: 0.0 * jnp.sum(params["a"]) * x[0], params, x, y, key, multiplier,
        clip=clip, steps=1, learning_rate=1.0, momentum=0.0,
    )  # fmt: skip
    keys = jax.random.split(jax.random.fold_in(key, 0), 2)
    for k, leaf in zip(keys, (left["a"], left["b"]), strict=True):
        want = streams.add(jnp.zeros(leaf.size), streams.unit_gaussian(k, leaf.size), multiplier * clip)
        # Dividing by 8 records loses nothing. The scale is 2.5, which lies above 2: cells are 2·2^-3 wide.
        cells = np.asarray(-8 * leaf).ravel() / 2.0**-2
        np.testing.assert_array_equal(cells, np.rint(cells))
        # One cell: what is compiled may round the last bit in another way.
        np.testing.assert_allclose(cells, np.asarray(want) / 2.0**-2, atol=1)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_every_step_of_descent_has_noise_of_its_own():
    """Records that pull nothing: the first step leaves its noise, the second adds another.

    A correlation of 300 independent pairs beyond .35 has probability 1e-9.
    """
    x, y = jnp.ones((8, 1)), jnp.zeros(8, jnp.int32)
    one, two = (
        dp_gradient.descend(
            lambda params, x, y: 0.0 * jnp.sum(params["a"]) * x[0], {"a": jnp.zeros(300)}, x, y, jax.random.key(3), 5.0,
            clip=0.5, steps=steps, learning_rate=1.0, momentum=0.0,
        )["a"]
        for steps in (1, 2)
    )  # fmt: skip
    assert abs(np.corrcoef(one, two - one)[0, 1]) < 0.35


@pytest.mark.parametrize(("epsilon", "steps"), [(0.5, 1), (1.0, 10), (8.0, 100)])
def test_the_noise_composes_to_the_budget(epsilon, steps):
    import dp_accounting

    multiplier = dp_gradient.noise_multiplier(epsilon, 1e-5, steps, 500)
    # σ/C in dp-accounting's own convention (add or remove), converted to replace-one by the accountant.
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(multiplier), steps)
    found = account([Spend(event, "add-or-remove-one")], 1e-5)
    assert found.method == "exact-gaussian"
    assert found.epsilon == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.slow
def test_descent_learns_without_noise_and_its_noise_has_the_stated_size():
    params, x, y = _problem(40)
    run = jax.jit(
        lambda key, m: dp_gradient.descend(
            _loss, params, x, y, key, m, clip=1.0, steps=1, learning_rate=1.0, momentum=0.0, chunk=16
        )
    )
    still = run(jax.random.key(0), 0.0)
    drawn = jax.vmap(lambda k: run(k, 5.0))(jax.random.split(jax.random.key(1), 500))
    gap = np.concatenate([np.asarray(drawn[n] - still[n]).ravel() for n in ("w", "b")])
    # Standard deviation σC/N = 5/40; 7,500 normal draws: 4 standard errors are 3.3 %.
    assert gap.std() == pytest.approx(5.0 / 40, rel=0.033)
    many = dp_gradient.descend(_loss, params, x, y, jax.random.key(0), 0.0, clip=1.0, steps=50, learning_rate=0.5)
    before, after = (float(jnp.mean(jax.vmap(lambda a, b, p=p: _loss(p, a, b))(x, y))) for p in (params, many))
    assert after < 0.7 * before


def test_pixelise_is_the_block_mean_when_nothing_is_hidden():
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 2)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 5)
    got = pixelise.pixelise(images, 4, 1e6, keys)
    want = images.reshape(5, 2, 4, 2, 4, 2).mean((2, 4)).repeat(4, 1).repeat(4, 2)
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_pixelise_hides_a_whole_image():
    # One block of a 2x2 image, black against white: two Laplace laws 2 apart with scale 2/ε. P(above 0) tells them
    # apart as (ε, 0)-privacy allows: log(P/P') <= ε, here from 40,000 draws with 5 standard errors.
    keys = jax.random.split(jax.random.key(0), 40_000)
    shares = [
        float(jnp.mean(pixelise.pixelise(jnp.full((40_000, 2, 2, 1), v), 2, 1.0, keys)[:, 0, 0, 0] > 0))
        for v in (-1.0, 1.0)
    ]
    # Sums are rounded to multiples of 1/4, an eighth of the scale: above 0 is what was above 1/8.
    assert shares[0] == pytest.approx(0.5 * np.exp(-(1 + 1 / 8) / 2), abs=0.012)
    assert np.log(shares[1] / shares[0]) < 1.0


def test_blocks_must_fit():
    with pytest.raises(InputError, match="pixel_block"):
        pixelise.pixelise(jnp.zeros((1, 8, 8, 1)), 3, 1.0, jax.random.split(jax.random.key(0), 1))
