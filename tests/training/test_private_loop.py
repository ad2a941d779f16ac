"""Private training by the loop: resumed as if uninterrupted, accounted for, its secret gone at the end."""

from __future__ import annotations

import dataclasses
import math
import shutil
import stat
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from private_toys import RECORDS, ConvTask, PullTask, ToyRecords, plan_of, private_config
from training_toys import ToyBatches, ToyTask, to_numpy

from diffusion_privacy.data import pipeline, sources
from diffusion_privacy.errors import InputError
from diffusion_privacy.training import loop, sharding
from diffusion_privacy.training.checkpoint import Checkpoints, read_progress
from diffusion_privacy.training.metrics import read_csv
from diffusion_privacy.training.secret import FILE

TIMING = ("steps_per_second", "examples_per_second")


class Stop(Exception):
    pass


def stop_at_8(step: int, row: dict) -> None:
    if step == 8:
        raise Stop


def run(workdir: Path, *, source=None, task=None, devices: int = 1, seed: int = 3, on_log=None, **changes):
    config = private_config(**changes)
    mesh = sharding.data_mesh(jax.devices()[:devices])
    return loop.train(
        task or ConvTask(), source or ToyRecords(), config, workdir=workdir, seed=seed, name="toy", on_log=on_log,
        mesh=mesh,
    )  # fmt: skip


def differ(a, b) -> bool:
    return any(not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_a_resumed_run_is_the_uninterrupted_one_in_parameters_and_in_epsilon(tmp_path):
    part, whole, task = tmp_path / "part", tmp_path / "whole", PullTask(RECORDS)
    with pytest.raises(Stop):
        run(part, task=task, checkpoint_every=6, on_log=stop_at_8)
    assert stat.S_IMODE((part / FILE).stat().st_mode) == 0o600
    spent = read_progress(part)["privacy"]
    plan = plan_of(private_config(), ToyRecords())
    assert spent["steps_done"] == 6
    assert spent["epsilon_so_far"] == plan.epsilon(6)
    whole.mkdir()
    shutil.copy(part / FILE, whole / FILE)
    uninterrupted = run(whole, task=task, checkpoint_every=6)
    steps = []
    resumed = run(part, task=task, checkpoint_every=6, on_log=lambda step, row: steps.append(step))
    assert steps == [8, 12], "it went on after step 6"
    assert not differ(to_numpy(resumed), to_numpy(uninterrupted))
    one, two = read_csv(whole / "metrics.csv"), read_csv(part / "metrics.csv")
    assert set(one) == set(two)
    for name in set(one) - set(TIMING):
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    np.testing.assert_allclose(one["epsilon"], [plan.epsilon(k) for k in (4, 8, 12)], rtol=1e-12)
    assert read_progress(part)["privacy"]["epsilon_so_far"] == plan.epsilon()
    assert not (part / FILE).exists(), "finished: nobody can subtract the noise any more"


@pytest.mark.slow
def test_a_lost_secret_is_not_replaced_and_the_seed_decides_nothing(tmp_path):
    with pytest.raises(Stop):
        run(tmp_path / "a", checkpoint_every=3, on_log=stop_at_8)
    kept = (tmp_path / "a" / FILE).rename(tmp_path / "kept")
    with pytest.raises(InputError, match="expected the secret that this private run began with"):
        run(tmp_path / "a", checkpoint_every=3)
    kept.rename(tmp_path / "a" / FILE)
    first = run(tmp_path / "a", checkpoint_every=3)
    assert not differ(to_numpy(run(tmp_path / "a", checkpoint_every=3)), to_numpy(first)), "finished runs do no work"
    assert differ(to_numpy(run(tmp_path / "b").params), to_numpy(first.params)), "same seed, other noise"


@pytest.mark.slow
def test_a_private_run_never_goes_on_from_another_one(tmp_path):
    run(tmp_path, steps=2)
    for words, changes in {
        r"training\.privacy\.noise_multiplier \(there 4\.0, here 2\.0\)": {"p_noise_multiplier": 2.0},
        r"training\.privacy\.clip_norm \(there 0\.5, here 'absent'\)": {"p_noise_multiplier": 0.0},
    }.items():
        with pytest.raises(InputError, match=words):
            run(tmp_path, steps=2, **changes)


def test_batches_of_several_records_are_refused_before_anything_is_trained(tmp_path):
    config = private_config()
    with pytest.raises(InputError, match="stream whose batches are made of single records"):
        loop.train(ToyTask(), ToyBatches(4), config, workdir=tmp_path, seed=0, name="toy")
    assert not (tmp_path / FILE).exists()


@pytest.mark.slow
def test_initialisation_sees_no_record(tmp_path):
    class Peek(ConvTask):
        def init(self, key, batch):
            return {name: leaf + jnp.sum(batch["image"]) for name, leaf in super().init(key, batch).items()}

    run(tmp_path / "a", task=Peek(), steps=1)
    first = ConvTask().init(loop.rng.stream(3, "toy.init"), None)
    moved = jax.tree.map(np.subtract, to_numpy(run(tmp_path / "a", task=Peek(), steps=1).params), to_numpy(first))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(moved)) < 0.011, "one step of Adam, and nothing else"


def test_a_private_run_begins_at_parameters_that_saw_no_record(tmp_path):
    """The same without privacy shows that the task would have looked."""

    class Peek(PullTask):
        def init(self, key, batch):
            return {"w": jnp.full(self.size, jnp.sum(batch["image"]))}

    mesh = sharding.data_mesh(jax.devices()[:1])
    for noise, saw in ((4.0, False), (0.0, True)):
        config = private_config(p_noise_multiplier=noise)
        with Checkpoints(tmp_path / str(saw), {}, keep=1) as checkpoints:
            begun = loop._Run(Peek(4), ToyRecords(), config, 3, "toy", mesh, checkpoints)
        assert np.any(np.asarray(begun.state.params["w"]) != 0) == saw


@pytest.mark.slow
def test_a_score_model_trains_privately_as_it_is(tmp_path):
    """Three steps on digits. (A flow does in tests/stages/test_cadp.py, a classifier below.)"""
    from diffusion_privacy.diffusion.sde import VP
    from diffusion_privacy.networks.mlp import MLP
    from diffusion_privacy.tasks import ScoreTask

    task, rows = ScoreTask(MLP(hidden=16, depth=1), VP(), batch_size=8), {}
    digits = sources.load("digits", limit=40)
    run(
        tmp_path, source=pipeline.Batches(digits, 8, 0), task=task, batch_size=8, steps=3, log_every=3,
        on_log=rows.__setitem__, p_delta=1e-3, p_augmentations=2, p_micro_batch=8,
    )  # fmt: skip
    assert math.isfinite(rows[3]["loss"])
    assert 0 < rows[3]["epsilon"] < math.inf


@dataclasses.dataclass(frozen=True)
class Logistic:
    """Ten classes of digits."""

    def init(self, key, batch):
        return {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}

    def loss(self, params, batch, key):
        logits = jnp.reshape(batch["image"], (-1, 64)) @ params["w"] + params["b"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1)[:, 0], {}

    def evaluate(self, params, batch, key):
        return {}


@pytest.mark.slow
def test_a_small_private_run_learns_within_its_target(tmp_path):
    digits = sources.load("digits")
    train, test = digits.take(np.arange(1400)), digits.take(np.arange(1400, 1797))
    rows: dict[int, dict] = {}
    state = run(
        tmp_path, source=pipeline.Batches(train, 200, 1), task=Logistic(), batch_size=200, steps=60, log_every=20,
        learning_rate=0.02, weight_decay=0.0, on_log=rows.__setitem__, p_noise_multiplier=0.0, p_epsilon=4.0,
        p_delta=1e-5, p_clip_norm=1.0, p_micro_batch=100,
    )  # fmt: skip
    assert rows[20]["epsilon"] < rows[40]["epsilon"] < rows[60]["epsilon"] <= 4.0
    params = to_numpy(state.ema_params)
    answers = np.argmax(test.image.reshape(len(test), -1) @ params["w"] + params["b"], axis=1)
    # About .83 over secrets; 97 of 397 is 20 standard errors below what guessing (.1) leaves possible.
    assert np.mean(answers == test.label) > 0.65
