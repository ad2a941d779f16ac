"""Schedules, averages and settings against their formulas."""

from __future__ import annotations

import math

import jax.numpy as jnp
import pytest
from training_toys import toy_config

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import state as states


def test_constant_schedule_with_warmup() -> None:
    rate = states.learning_rate_schedule(toy_config(schedule="constant", warmup_steps=4, learning_rate=0.8))
    assert [float(rate(jnp.asarray(k))) for k in (0, 1, 3, 4, 11)] == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])


def test_cosine_schedule_with_warmup() -> None:
    rate = states.learning_rate_schedule(toy_config(steps=12, warmup_steps=4, learning_rate=1.0))
    assert float(rate(jnp.asarray(1))) == pytest.approx(0.5)
    for k in range(4, 13):
        assert float(rate(jnp.asarray(k))) == pytest.approx(0.5 * (1 + math.cos(math.pi * (k - 4) / 8)), abs=1e-6)
    assert float(rate(jnp.asarray(12))) == pytest.approx(0, abs=1e-6)


def test_no_warmup_starts_at_the_full_rate() -> None:
    rate = states.learning_rate_schedule(toy_config(warmup_steps=0, learning_rate=0.3))
    assert float(rate(jnp.asarray(0))) == pytest.approx(0.3)


def test_ema_decay() -> None:
    warm, plain = toy_config(ema_decay=0.9), toy_config(ema_decay=0.9, ema_warmup=False)
    assert float(states.ema_decay(warm, jnp.asarray(0))) == pytest.approx(0.1)
    assert float(states.ema_decay(warm, jnp.asarray(8))) == pytest.approx(0.5)
    assert float(states.ema_decay(warm, jnp.asarray(1000))) == pytest.approx(0.9)
    assert float(states.ema_decay(plain, jnp.asarray(0))) == pytest.approx(0.9)


def test_weight_decay_moves_matrices_only() -> None:
    config = toy_config(weight_decay=0.5, warmup_steps=0, schedule="constant", learning_rate=0.1)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = states.make_optimizer(config)
    zero = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert updates["kernel"] == pytest.approx(-0.05)
    assert updates["bias"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("steps", 0, "at least 1"),
        ("batch_size", -1, "at least 1"),
        ("learning_rate", 0.0, "positive"),
        ("learning_rate", math.nan, "positive"),
        ("warmup_steps", 13, "at most steps = 12"),
        ("schedule", "linear", "one of constant, cosine"),
        ("ema_decay", 1.0, r"in \[0, 1\)"),
        ("grad_clip_norm", -1.0, "at least 0"),
        ("weight_decay", math.inf, "finite"),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: object, expected: str) -> None:
    with pytest.raises(InputError, match=rf"training\.{field} must be .*{expected}.*, got {value!r}"):
        toy_config(**{field: value})


def test_identity_holds_what_decides_numbers_only() -> None:
    fields = states.identity(toy_config(), 3, "toy")
    assert fields == states.identity(toy_config(log_every=1, checkpoint_every=1, keep=9), 3, "toy")
    for change in ({"learning_rate": 0.5}, {"steps": 13}, {"ema_decay": 0.5}, {"micro_batches": 2}):
        assert fields != states.identity(toy_config(**change), 3, "toy")
    assert fields != states.identity(toy_config(), 4, "toy")
