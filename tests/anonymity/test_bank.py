"""Detectors of several records: log-odds, margins, and an identity task that the fingerprint cannot help."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.anonymity import bank
from diffusion_privacy.anonymity.detector_tasks import Perturbation
from diffusion_privacy.anonymity.fingerprints import Disc


def test_log_odds_are_those_of_the_softmax():
    logits = jax.random.normal(jax.random.key(0), (5, 4)) * 3
    p = jax.nn.softmax(logits, axis=1)[:, :-1]
    np.testing.assert_allclose(bank.log_odds(logits), jnp.log(p) - jnp.log1p(-p), rtol=1e-4, atol=1e-4)


def _linear_f(params, x):
    return x.reshape(len(x), -1) @ params


def test_margin_is_the_smaller_standardised_part_of_the_asked_record():
    scores = bank.PairScores(_linear_f, _linear_f)
    key = jax.random.key(1)
    params = {
        "fingerprint": jax.random.normal(key, (4, 1)),
        "identity": jax.random.normal(jax.random.fold_in(key, 1), (4, 3)),
        "thresholds": jnp.array([[0.1, 0.2], [0.3, -0.4]]),
        "scales": jnp.array([[1.0, 2.0], [0.5, 1.0]]),
    }
    x = jax.random.normal(jax.random.fold_in(key, 2), (6, 2, 2, 1))
    record = jnp.array([0, 1, 0, 1, 1, 0])
    f, identity = scores(params, x)
    wanted = [
        min(
            (f[i] - params["thresholds"][r, 0]) / params["scales"][r, 0],
            (identity[i, r] - params["thresholds"][r, 1]) / params["scales"][r, 1],
        )
        for i, r in enumerate(record)
    ]
    np.testing.assert_allclose(bank.PairMargin(scores)(params, x, record), np.array(wanted), rtol=1e-5, atol=1e-5)
    found = bank.evaluate(scores, params, np.asarray(x), chunk=2)
    np.testing.assert_allclose(found[0], f, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], identity, rtol=1e-5, atol=1e-6)


def test_scores_that_are_not_finite_are_refused():
    scores = bank.PairScores(_linear_f, _linear_f)
    params = {"fingerprint": jnp.full((4, 1), jnp.nan), "identity": jnp.ones((4, 3))}
    with pytest.raises(FloatingPointError):
        bank.evaluate(scores, params, np.ones((3, 2, 2, 1), np.float32))


def _task(records, identities):
    def capture(params, image):
        # The "network" returns the image's own brightness extremes, so that the test sees what it was given.
        flat = image.reshape(len(image), -1)
        return jnp.stack([flat.min(1), flat.max(1), flat.mean(1)], axis=1) + params

    return bank.IdentityBankTask(
        lambda key, x: jnp.zeros(()), capture, Disc(value=1.0), records, identities, Perturbation(0.0, 0.0, 0.0)
    )


def test_classes_are_balanced_and_marks_do_not_tell_them():
    """The number of fingerprints is drawn apart from the class: correlation within 4 standard errors (alarm 6e-5)."""
    records = np.full((2, 8, 8, 1), -1.0, np.float32)
    task = _task(records, np.array([0, 1]))
    batch = {
        "image": np.full((4000, 8, 8, 1), -1.0, np.float32),
        "identity": np.full(4000, 9, np.int32),
        "position": np.arange(4000, dtype=np.int32),
    }
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(4000))
    image, target = jax.jit(jax.vmap(task._one))(batch["image"], batch["identity"], keys)
    share = np.bincount(np.asarray(target), minlength=3) / 4000
    np.testing.assert_allclose(share, [0.25, 0.25, 0.5], atol=4 * 0.5 / np.sqrt(4000))
    marked = np.asarray(image.reshape(4000, -1).max(1) > 0).astype(float)
    assert 0.7 < marked.mean() < 0.9
    assert abs(np.corrcoef(marked, np.asarray(target) == 2)[0, 1]) < 4 / np.sqrt(4000)


def test_another_image_of_an_audited_person_is_that_record():
    task = _task(np.zeros((2, 8, 8, 1), np.float32), np.array([5, 7]))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(64))
    image = jnp.zeros((64, 8, 8, 1))
    _, target = jax.jit(jax.vmap(task._one))(image, jnp.full(64, 7), keys)
    assert set(np.asarray(target).tolist()) <= {0, 1}
