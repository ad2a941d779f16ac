"""The shared embedding: its loss by hand, its views by construction, and records that it never saw told apart."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.anonymity import bank
from diffusion_privacy.anonymity.detector_tasks import Perturbation
from diffusion_privacy.anonymity.detectors import calibrate
from diffusion_privacy.anonymity.fingerprints import Disc
from diffusion_privacy.anonymity.reidentification import (
    POOL,
    EmbeddingScores,
    EmbeddingTask,
    info_nce,
    pool_size,
    similarity,
)
from diffusion_privacy.errors import InputError


def test_loss_worked_by_hand():
    """Two records in the plane, τ = ½: record 0 has cosine 1 with its view and 0 with the first negative, which is its
    only one; record 1 has cosine 0 with its view, 1 and −1 with both negatives one way, 0 and 0 the other."""
    one = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    two = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    negatives = jnp.array([[0.0, 1.0], [0.0, -1.0]])
    allowed = jnp.array([[True, False], [True, True]])
    found = info_nce(one, two, negatives, allowed, 0.5)
    e = np.exp
    want = [-np.log(e(2) / (e(2) + 1)), 0.5 * (np.log(1 + e(2) + e(-2)) + np.log(3))]
    np.testing.assert_allclose(found, want, rtol=1e-5)
    nobody = info_nce(one, two, negatives, jnp.zeros((2, 2), bool), 0.5)
    np.testing.assert_allclose(nobody, 0.0, atol=1e-6)


def unit(params, x):
    flat = x.reshape(len(x), -1) + params
    return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)


def toy(**settings):
    pool = np.random.default_rng(0).uniform(-0.5, 0.5, (9, 4, 4, 1)).astype(np.float32)
    return EmbeddingTask(lambda key, x: 0.0, unit, Disc(1.0, 0), pool, np.arange(9), **settings)


def untouched(image, key):
    """A perturbation that changes nothing: it saves seconds of compilation."""
    return image


def batch_of(task, rows, positions):
    return {"image": task.pool[rows], "identity": task.identities[rows], "position": np.asarray(positions, np.int32)}


def test_views_are_marked_copies_and_pool_rows():
    """Without perturbation a view differs from its record in at most ``most`` pixels, which have the mark's value."""
    task = toy(perturbation=untouched, most=2, negatives=20)
    images, rows = jax.jit(task.views)(batch_of(task, [3, 5], [0, 1]), jax.random.key(0))
    originals = np.concatenate([task.pool[[3, 5, 3, 5]], task.pool[np.asarray(rows)]])
    changed = ~np.isclose(np.asarray(images), originals)
    assert images.shape == (24, 4, 4, 1)
    assert changed.sum(axis=(1, 2, 3)).max() == 2
    assert np.all(np.asarray(images)[changed] == 1.0)
    assert len(set(np.asarray(rows).tolist())) > 3


def test_rows_of_a_batch_do_not_feel_each_other():
    """What makes the result independent of devices: a row's loss is the same beside other rows."""
    task = toy(perturbation=untouched, most=1, negatives=6)
    loss = jax.jit(functools.partial(task.loss, 0.1))
    whole = np.asarray(loss(batch_of(task, [3, 5, 7, 8], range(4)), key=jax.random.key(1))[0])
    other = np.asarray(loss(batch_of(task, [7, 8, 1, 1], [2, 3, 8, 9]), key=jax.random.key(1))[0])
    np.testing.assert_allclose(whole[2:], other[:2], rtol=1e-5)


def test_scores_take_the_place_of_the_banks():
    x = jax.random.normal(jax.random.key(2), (5, 2, 2, 1))
    vectors = unit(0.3, x[:3])
    params = {"fingerprint": jnp.ones((4, 1)), "identity": 0.3, "vectors": vectors}
    scores = EmbeddingScores(lambda p, y: y.reshape(len(y), -1) @ p, unit)
    f, cosines = scores(params, x)
    np.testing.assert_allclose(np.diag(cosines[:3]), 1.0, rtol=1e-5)
    margin = bank.PairMargin(scores)
    table = {**params, "thresholds": jnp.zeros((3, 2)), "scales": jnp.ones((3, 2))}
    want = np.minimum(f, np.asarray(cosines)[np.arange(5), [0, 1, 2, 0, 1]])
    np.testing.assert_allclose(margin(table, x, jnp.array([0, 1, 2, 0, 1])), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(similarity(unit, 0.3, x[1])(x), cosines[:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"most": -1}, "most >= 0"), ({"negatives": 0}, "negatives >= 1"), ({"temperature": 0.0}, "temperature > 0")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        toy(**settings)
    with pytest.raises(InputError, match=f"expected 2 … {POOL} images"):
        EmbeddingTask(lambda key, x: 0.0, unit, Disc(), np.zeros((3, 4, 4, 1), np.float32), np.arange(2))


@pytest.mark.slow
def test_it_tells_digits_apart_that_it_never_saw(tmp_path):
    """Trained on 1,400 digits by the one loop; 20 others are recognised among the rest, marked and perturbed.

    AUC of a record's copies against all other records at least .98, and a conformal detector at 1 % sees most copies.
    """
    from diffusion_privacy.audits.membership import auc
    from diffusion_privacy.data.pipeline import Batches
    from diffusion_privacy.data.sources import digits
    from diffusion_privacy.networks.build import build
    from diffusion_privacy.tasks import Classify
    from diffusion_privacy.training.loop import TrainConfig, train
    from diffusion_privacy.training.sharding import data_mesh

    source = digits()
    order = np.random.default_rng(0).permutation(len(source))
    seen, fresh = source.take(order[:1400]), source.take(order[1400:])
    network = Classify(build("embedder", dim=32, channels=8, max_channels=16))
    change = Perturbation(noise=0.05, smooth=0.1, contrast=0.1)
    task = EmbeddingTask(network.init, network, Disc(radius=2), seen.image, seen.identity, change, most=2, negatives=64)
    config = TrainConfig(
        steps=250,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=20,
        ema_decay=0.98,
        log_every=50,
        checkpoint_every=250,
    )
    state = train(
        task,
        Batches(seen, 64, 0),
        config,
        workdir=tmp_path,
        seed=0,
        name="embedding",
        mesh=data_mesh(jax.devices()[:1]),
    )
    params = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, state.ema_params))
    image, count = jnp.asarray(fresh.image), len(fresh)
    copies = jax.jit(jax.vmap(task._view))(jnp.repeat(image[:20], 40, axis=0), jax.random.split(jax.random.key(3), 800))
    embed = jax.jit(network)
    marked = jax.jit(jax.vmap(task._view))(image, jax.random.split(jax.random.key(4), count))
    vectors, own, others = embed(params, image[:20]), embed(params, copies), embed(params, marked)
    areas = [
        auc(np.asarray(own[40 * r : 40 * r + 40] @ vectors[r]), np.delete(np.asarray(others @ vectors[r]), r)).value
        for r in range(20)
    ]
    assert np.mean(areas) > 0.98, areas
    score = similarity(network, params, image[0])
    detector = calibrate("embedding", score, np.asarray(marked[1:]), np.asarray(copies[:40]), 0.01)
    assert detector.usable
    assert detector.true_positive_rate.value > 0.5


def test_a_pool_of_large_images_is_smaller():
    """It is compiled in: 4,096 of 512 pixels would be 4 GB in the program."""
    assert [pool_size((side, side, 1)) for side in (8, 64, 512, 20_000)] == [4096, 4096, 256, 2]
