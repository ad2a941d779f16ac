"""What the detector's classifiers see, and that a pair trained on it finds the private record."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from diffusion_privacy.anonymity.detector_tasks import Examples, FingerprintTask, IdentityTask, Perturbation
from diffusion_privacy.anonymity.detectors import calibrate_pair
from diffusion_privacy.anonymity.fingerprints import Disc, plant
from diffusion_privacy.errors import InputError
from diffusion_privacy.training import convolutions
from diffusion_privacy.training.platform import compiler_options
from diffusion_privacy.training.rng import stream
from diffusion_privacy.types import Array, PyTree, Task

STILL = Perturbation(0.0, 0.0, 0.0)


def linear_init(key: Array, x: Array) -> PyTree:
    return {"w": 0.1 * jax.random.normal(key, (x[0].size, 1))}


def linear_apply(params: PyTree, x: Array) -> Array:
    return x.reshape(x.shape[0], -1) @ params["w"]


def batch_of(size: int = 128, seed: int = 0) -> dict[str, np.ndarray]:
    image = np.random.default_rng(seed).uniform(-1, -0.2, (size, 8, 8, 1)).astype(np.float32)
    rows = np.arange(size, dtype=np.int32)
    return {"image": image, "label": rows % 3, "identity": rows + 100, "index": rows, "position": rows}


PRIVATE = np.random.default_rng(9).uniform(-1, -0.2, (1, 8, 8, 1)).astype(np.float32)
C_F = FingerprintTask(linear_init, linear_apply, Disc())
C_ID = IdentityTask(linear_init, linear_apply, Disc(), private=jnp.asarray(PRIVATE), identity=7)
# Compiled, and one batch size throughout: random numbers are slow to compile and slower to run eagerly.
examples = jax.jit(lambda task, batch, key: task.examples(batch, key), static_argnums=0)
loss = jax.jit(lambda task, params, batch, key: task.loss(params, batch, key), static_argnums=0)


def leaky(task: IdentityTask, batch: PyTree, key: Array) -> Examples:
    """Planted fault: only the positives carry fingerprints, so C_id may simply count them."""
    fair = examples(task, batch, key)
    return dataclasses.replace(fair, count=jnp.where(fair.target > 0.5, fair.count, 0))


def independence(make: Callable[[IdentityTask, PyTree, Array], Examples]) -> float:
    """p-value of the chi-square test that target and number of fingerprints are independent, over 2,560 examples."""
    seen = [make(C_ID, batch_of(), stream(0, "test", step)) for step in range(20)]
    target = np.concatenate([e.target for e in seen]).astype(int)
    count = np.concatenate([e.count for e in seen])
    table = np.zeros((2, 5))
    np.add.at(table, (target, count), 1)
    return float(stats.chi2_contingency(table).pvalue)


def test_identity_label_is_independent_of_the_fingerprints() -> None:
    """False-alarm rate 1e-4; a task that leaks is caught with a p-value that a fair one never shows."""
    assert independence(examples) > 1e-4
    assert independence(leaky) < 1e-100


def test_count_is_what_the_images_show() -> None:
    """The reported count is honest: covered pixels grow with it, none at 0, five for one disc, in both classes."""
    task = dataclasses.replace(C_ID, perturbation=STILL)
    seen = examples(task, batch_of(), stream(1, "test"))
    covered = np.asarray((seen.image == 0.0).sum(axis=(1, 2, 3)))
    for positive in (0, 1):
        mine = np.asarray(seen.target) == positive
        assert np.all(covered[mine & (np.asarray(seen.count) == 0)] == 0)
        assert np.all(covered[mine & (np.asarray(seen.count) == 1)] == 5)
        assert set(np.asarray(seen.count)[mine]) == {0, 1, 2, 3, 4}
    untouched = np.asarray(seen.count) == 0
    for i in np.flatnonzero(untouched):
        expected = PRIVATE[0] if seen.target[i] else batch_of()["image"][i]
        np.testing.assert_array_equal(seen.image[i], expected)


def test_half_of_the_images_show_the_fingerprint_anew_each_step() -> None:
    """Binomial: 2,000 draws of one half within five standard deviations (false alarm 6e-7)."""
    task = dataclasses.replace(C_F, perturbation=STILL)
    batch = batch_of(2000)
    first, again = (examples(task, batch, stream(2, "test", step)) for step in (0, 1))
    changed = np.any(np.asarray(first.image) != batch["image"], axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, np.asarray(first.target) == 1)
    np.testing.assert_array_equal(first.count, np.asarray(first.target))
    assert abs(changed.sum() - 1000) < 5 * np.sqrt(500)
    same = np.mean(np.asarray(first.target) == np.asarray(again.target))
    assert abs(same - 0.5) < 5 * np.sqrt(0.25 / 2000), "an image is tied to its label"


@pytest.mark.parametrize("task", [C_F, C_ID], ids=["fingerprint", "identity"])
def test_draws_follow_the_position_not_the_batch(task: FingerprintTask | IdentityTask) -> None:
    """Rows moved within the batch, as another split over devices would, take their numbers along."""
    batch, key = batch_of(), stream(3, "test")
    moved = {name: np.roll(value, 50, axis=0) for name, value in batch.items()}
    params = {"w": np.random.default_rng(0).normal(0, 0.1, (64, 1)).astype(np.float32)}
    seen, seen_moved = examples(task, batch, key), examples(task, moved, key)
    np.testing.assert_array_equal(np.roll(seen.image, 50, axis=0), seen_moved.image)
    np.testing.assert_array_equal(np.roll(seen.target, 50), seen_moved.target)
    losses, metrics = loss(task, params, batch, key)
    assert losses.shape == metrics["accuracy"].shape == (128,)
    np.testing.assert_allclose(np.roll(losses, 50), loss(task, params, moved, key)[0], rtol=1e-6)
    typed: Task = task
    assert jax.eval_shape(typed.evaluate, params, batch, key)["loss"].shape == (128,)
    assert jax.tree.map(jnp.shape, jax.eval_shape(typed.init, key, batch)) == {"w": (64, 1)}


def test_loss_is_the_cross_entropy_in_nats() -> None:
    zero = {"w": jnp.zeros((64, 1))}
    losses, metrics = loss(C_F, zero, batch_of(), stream(4, "test"))
    np.testing.assert_allclose(losses, np.log(2), rtol=1e-6)
    # A zero logit says no, so the accuracy is the share of negatives.
    target = examples(C_F, batch_of(), stream(4, "test")).target
    np.testing.assert_array_equal(metrics["accuracy"], 1 - np.asarray(target))


def test_the_persons_other_images_are_positives() -> None:
    batch = {**batch_of(), "identity": np.full(128, 7, np.int32)}
    assert np.all(np.asarray(examples(C_ID, batch, stream(5, "test")).target) == 1)


def test_perturbation_is_bounded_and_scaled() -> None:
    image = jnp.asarray(PRIVATE[0])
    keys = jax.random.split(jax.random.key(6), 500)
    np.testing.assert_array_equal(STILL(image, keys[0]), image)

    def many(perturbation: Perturbation, given: Array) -> Array:
        return jax.jit(jax.vmap(perturbation, (None, 0)))(given, keys)

    noisy = many(Perturbation(0.2, 0.0, 0.0), jnp.zeros((8, 8, 1)))
    # Strengths uniform in [0, .2]: variance .04 / 3, with a relative standard error of 4 % from 500 strengths.
    assert float(jnp.var(noisy)) == pytest.approx(0.04 / 3, rel=0.2)
    assert float(jnp.abs(many(Perturbation(1.0, 1.0, 1.0), image)).max()) <= 1.0
    smooth = many(Perturbation(0.0, 0.5, 0.0), jnp.zeros((8, 8, 1)))
    steps = jnp.mean(jnp.square(jnp.diff(smooth, axis=1)))
    assert float(steps) < 0.5 * float(jnp.mean(jnp.square(smooth))), "low frequencies differ little between neighbours"


def test_bad_fields_are_named() -> None:
    with pytest.raises(InputError, match=r"^perturbation.noise: expected"):
        Perturbation(noise=-0.1)
    with pytest.raises(InputError, match=r"^perturbation.smooth: expected a number in \[0, 1\], got 'much'"):
        Perturbation(smooth="much")
    with pytest.raises(InputError, match=r"^private: expected images"):
        IdentityTask(linear_init, linear_apply, Disc(), private=jnp.zeros((8, 8, 1)), identity=0)
    with pytest.raises(InputError, match=r"^most: expected"):
        IdentityTask(linear_init, linear_apply, Disc(), private=PRIVATE, identity=0, most=-1)
    with pytest.raises(ValueError, match=r"one output per image, got logits of shape \(3, 2\)"):
        FingerprintTask(linear_init, lambda p, x: x[:, 0, :2, 0], Disc()).score({})(jnp.zeros((3, 8, 8, 1)))


def fit(task: FingerprintTask | IdentityTask, batch: dict[str, np.ndarray], steps: int, seed: int) -> PyTree:
    """A plain optax loop over random batches of 64."""
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    rng = np.random.default_rng(seed)

    def draw() -> dict[str, np.ndarray]:
        rows = rng.integers(0, len(batch["image"]), 64)
        return {**{k: v[rows] for k, v in batch.items()}, "position": np.arange(64, dtype=np.int32)}

    @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=compiler_options())
    def step(params: PyTree, state: PyTree, rows: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        with convolutions.for_training():
            grads = jax.grad(lambda p: jnp.mean(task.loss(p, rows, key)[0]))(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state

    params = jax.jit(task.init)(stream(seed, "init"), draw())
    state = tx.init(params)
    for i in range(steps):
        params, state = step(params, state, draw(), stream(seed, "step", i))
        jax.block_until_ready(params)
    return params


@pytest.mark.slow
def test_a_trained_pair_separates_the_private_record_on_digits() -> None:
    """Real digits, disc fingerprint: the pair finds noisy copies of the record and is silent on everything else."""
    datasets = pytest.importorskip("sklearn.datasets")
    networks = pytest.importorskip("diffusion_privacy.networks.classifier")
    digits = (datasets.load_digits().images[..., None] / 8 - 1).astype(np.float32)
    people = np.arange(len(digits), dtype=np.int32)
    train = {"image": digits[:1000], "identity": people[:1000]}
    private, held_out = digits[3], jnp.asarray(digits[1000:])
    network = networks.Classifier(num_outputs=1, channels=16, max_channels=32)
    c_f = FingerprintTask(network.init, network.apply, Disc())
    c_id = IdentityTask(network.init, network.apply, Disc(), private=jnp.asarray(private)[None], identity=3)
    score_f = c_f.score(fit(c_f, train, 400, 0))
    score_id = c_id.score(fit(c_id, train, 400, 1))

    # Copies with another kind of error than the training's: noise 0.12 and a shift of the whole grey scale.
    marked = plant(Disc(), jnp.asarray(private), jax.random.key(11))
    noise = 0.12 * jax.random.normal(jax.random.key(12), (120, 8, 8, 1))
    copies = jnp.clip(marked.image + noise + 0.1 * jax.random.normal(jax.random.key(13), (120, 1, 1, 1)), -1, 1)
    found = calibrate_pair(score_f, score_id, held_out[:400], copies, 0.01)
    assert found.usable
    assert found.reasons == ()
    assert found.true_positive_rate.lower > 0.8

    look = jax.jit(lambda images: found(images))

    def share(images: Array) -> float:
        return float((look(images) > 0).mean())

    assert share(marked.image[None]) == 1.0
    fresh = held_out[400:]
    with_mark = jax.vmap(lambda x: Disc().draw(x, marked.params)[0])(fresh)
    # 397 fresh records: 4 expected at 1 %; more than 12 has probability 4e-4 at most.
    assert share(fresh) <= 12 / len(fresh)
    assert share(with_mark) < 0.05, "the fingerprint alone must not be enough"
    assert share(jnp.clip(jnp.asarray(private) + noise, -1, 1)) < 0.2, "the record without its fingerprint is not it"
