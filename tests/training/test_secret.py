"""The secret: kept, checked, erased; and draws that are Poisson, by tests that other samplers fail."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import secret as secrets
from diffusion_privacy.training.secret import FILE, Secret

N, Q, STEPS = 40, 0.3, 2000


def test_it_is_made_once_kept_private_and_erased(tmp_path):
    first = secrets.obtain(tmp_path, {"a": 1}, None)
    again = secrets.obtain(tmp_path, {"a": 1}, first.fingerprint)
    path = tmp_path / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "Do not copy or publish" in json.loads(path.read_text())["note"]
    np.testing.assert_array_equal(first.noise_keys(3, 5), again.noise_keys(3, 5))
    assert secrets.obtain(tmp_path / "other", {"a": 1}, None).fingerprint != first.fingerprint
    secrets.erase(tmp_path)
    secrets.erase(tmp_path)
    assert not path.exists()
    with pytest.raises(InputError, match=r"NEVER_PUBLISH\.json: expected the secret .* found none"):
        secrets.obtain(tmp_path, {"a": 1}, first.fingerprint)
    assert not path.exists(), "a run that goes on never makes a new one"


def test_another_or_a_damaged_secret_is_refused(tmp_path):
    first = secrets.obtain(tmp_path, {}, None)
    secrets.erase(tmp_path)
    secrets.obtain(tmp_path, {}, None)
    with pytest.raises(InputError, match="found another"):
        secrets.obtain(tmp_path, {}, first.fingerprint)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(InputError, match="found none that can be read"):
        secrets.obtain(tmp_path, {}, None)


def test_other_settings_or_records_never_meet_the_same_noise():
    one, two = Secret(b"x" * 32, {"data": "a"}), Secret(b"x" * 32, {"data": "b"})
    assert not np.array_equal(one.noise_keys(0, 3), two.noise_keys(0, 3))
    keys = np.concatenate([one.noise_keys(step, 3) for step in range(50)])
    assert len(np.unique(keys, axis=0)) == 150, "a key for each array of each step"
    with pytest.raises(ValueError, match="32 bytes"):
        Secret(b"short", {})


def test_what_is_public_of_a_secret_tells_nothing_of_what_it_hides():
    """Its fingerprint stands in the ledger. From one stream it would be the first noise keys, and those would tell
    which records were drawn. (Fresh bytes meet so with probability below 2^-60.)"""
    secret = Secret(b"x" * 32, {})
    for step in range(3):
        noise = secret.noise_keys(step, 2 * N).astype("<u4").tobytes()
        assert bytes.fromhex(secret.fingerprint) not in noise
        words = np.frombuffer(noise, "<u8")[:64]
        assert not np.array_equal(secret.sample(step, 64, 0.5), np.flatnonzero(words < np.uint64(2**63)))


def is_poisson(draws: np.ndarray) -> bool:
    """Whether membership draws [STEPS, N] look independent with probability Q; wrong once in 10⁶ for a right sampler.

    Three two-sided tests at a third of that each: the mean number drawn, its variance (a fixed size has none), and how
    often a record is drawn in two steps running (epochs avoid that).
    """
    z = stats.norm.isf(1e-6 / 6)
    counts = draws.sum(axis=1)
    mean = (counts.mean() - N * Q) / np.sqrt(N * Q * (1 - Q) / STEPS)
    # Var of the sample variance of a binomial: its fourth central moment is below 3 var² here.
    spread = (counts.var() / (N * Q * (1 - Q)) - 1) / np.sqrt(2 / STEPS)
    twice = draws[1:] & draws[:-1]
    # Neighbouring pairs share a step: their covariance Q³ − Q⁴ counts twice.
    per_step = N * (Q**2 - Q**4 + 2 * (Q**3 - Q**4))
    run = (twice.sum() - N * Q**2 * (STEPS - 1)) / np.sqrt(per_step * (STEPS - 1))
    return bool(max(abs(mean), abs(spread), abs(run)) < z)


def test_draws_are_poisson():
    secret = Secret(b"s" * 32, {})
    draws = np.zeros((STEPS, N), bool)
    for step in range(STEPS):
        draws[step, secret.sample(step, N, Q)] = True
    assert is_poisson(draws)
    np.testing.assert_array_equal(secret.sample(7, N, Q), np.flatnonzero(draws[7]))
    np.testing.assert_array_equal(secret.sample(0, 5, 1.0), np.arange(5))


def test_samplers_that_are_not_poisson_are_rejected():
    rng = np.random.default_rng(0)
    size = round(N * Q)
    fixed = np.zeros((STEPS, N), bool)
    for row in fixed:
        row[rng.choice(N, size, replace=False)] = True
    assert not is_poisson(fixed), "without replacement, accounted as Poisson"
    order = np.concatenate([rng.permutation(N) for _ in range(STEPS * size // N + 1)])
    epochs = np.zeros((STEPS, N), bool)
    for step, row in enumerate(epochs):
        row[order[step * size : (step + 1) * size]] = True
    assert not is_poisson(epochs), "shuffled epochs, accounted as Poisson"
    assert not is_poisson(rng.random((STEPS, N)) < 1.05 * Q), "another probability"
    assert is_poisson(rng.random((STEPS, N)) < Q)
