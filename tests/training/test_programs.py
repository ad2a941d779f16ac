"""Runs that differ in their records and seeds alone share their programs; all others have programs of their own."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from private_toys import ConvTask, private_config
from training_toys import ToyBatches, ToyTask, to_numpy, toy_config

from diffusion_privacy.training import partition, private_step, programs, sharding, steps
from diffusion_privacy.training import state as states
from diffusion_privacy.training.loop import train
from diffusion_privacy.training.partition import Partition

TRACED: list[str] = []


@dataclasses.dataclass(frozen=True)
class CountedTask(ToyTask):
    """`ToyTask` that says when it is traced."""

    def init(self, key: Any, batch: Any) -> Any:
        TRACED.append("init")
        return super().init(key, batch)

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        TRACED.append("loss")
        return super().loss(params, batch, key)


class _Shifted:
    """`ToyTask` with targets that an array moves."""

    shift: np.ndarray

    def init(self, key: Any, batch: Any) -> Any:
        return ToyTask().init(key, batch)

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        return ToyTask().loss(params, {**batch, "y": batch["y"] + self.shift}, key)


@dataclasses.dataclass(frozen=True, eq=False)
class ByIdentity(_Shifted):
    """Compared by identity, as tasks with records are."""

    shift: np.ndarray


@dataclasses.dataclass(frozen=True)
class ByValue(_Shifted):
    """Compared by value, with an array among its fields: it has no hash."""

    shift: np.ndarray


def run(folder: Path, task: Any, seed: int = 0, **changes: Any) -> Any:
    config = toy_config(**changes)
    return to_numpy(train(task, ToyBatches(), config, workdir=folder, seed=seed, name="toy").params)


def parts_of(config: Any) -> Partition:
    """On one device, from a state made anew."""
    optimizer, batch = states.make_optimizer(config), ToyBatches().batch(0)
    template = jax.eval_shape(lambda key: states.create(ToyTask(), optimizer, key, batch), jax.random.key(0))
    return partition.of(template, config.sharding, sharding.data_mesh(jax.devices()[:1]))


def step_of(config: Any, task: Any = None) -> Any:
    parts = parts_of(config)
    return steps.make_step(ToyTask() if task is None else task, config, parts.mesh, parts)


def test_a_model_with_another_seed_is_not_traced_again_and_is_what_it_was_alone(tmp_path: Path) -> None:
    TRACED.clear()
    run(tmp_path / "first", CountedTask())
    once = TRACED.copy()
    TRACED.clear()
    second = run(tmp_path / "second", CountedTask(), seed=1)
    # What the loss returns is looked at in every run, without compiling it.
    assert TRACED == ["loss"]
    assert once.count("loss") > 1
    programs.forget()
    alone = run(tmp_path / "alone", CountedTask(), seed=1)
    jax.tree.map(np.testing.assert_array_equal, second, alone)
    assert TRACED.count("loss") == 1 + once.count("loss")


OTHERS: dict[str, Any] = {
    "steps": 13, "batch_size": 16, "learning_rate": 2e-2, "warmup_steps": 4, "schedule": "constant",
    "weight_decay": 0.02, "beta1": 0.8, "beta2": 0.99, "grad_clip_norm": 0.5, "ema_decay": 0.8, "ema_warmup": False,
    "micro_batches": 2, "convolutions": "ynnpack", "sharding": (".*: whole",),
}  # fmt: skip


@pytest.mark.parametrize("field", OTHERS)
def test_other_settings_make_another_program(field: str) -> None:
    config = toy_config()
    other = dataclasses.replace(config, **{field: OTHERS[field]})
    assert step_of(config) is step_of(config)
    assert step_of(other) is not step_of(config)


def test_all_settings_that_decide_what_a_step_computes_are_tried() -> None:
    decide = set(states.identity(toy_config(), 0, "")) - {"seed", "name"}
    assert {f"training.{name}" for name in OTHERS} >= decide


@pytest.mark.parametrize(
    "change", [{"p_clip_norm": 0.25}, {"p_augmentations": 2}, {"batch_size": 8}, {"p_noise_multiplier": 5.0}]
)
def test_private_steps_share_under_equal_settings_alone(change: dict[str, Any]) -> None:
    mesh = sharding.data_mesh(jax.devices()[:1])
    config, other = private_config(), private_config(**change)
    assert private_step._accumulate(ConvTask(), config, mesh) is private_step._accumulate(ConvTask(), config, mesh)
    assert private_step._accumulate(ConvTask(), other, mesh) is not private_step._accumulate(ConvTask(), config, mesh)
    assert private_step._finish(config, mesh) is private_step._finish(private_config(), mesh)
    assert private_step._finish(other, mesh) is not private_step._finish(config, mesh)


def test_another_task_or_mesh_makes_another_program() -> None:
    config = toy_config()
    assert step_of(config, ToyTask(9)) is not step_of(config)
    parts = parts_of(config)
    elsewhere = dataclasses.replace(parts, mesh=sharding.data_mesh(jax.devices()[:2]))
    assert parts == parts_of(config)
    assert parts != elsewhere
    assert steps.make_step(ToyTask(), config, elsewhere.mesh, elsewhere) is not step_of(config)


@pytest.mark.parametrize("kind", [ByIdentity, ByValue])
def test_tasks_with_arrays_are_traced_anew_and_not_held(tmp_path: Path, kind: Any) -> None:
    task = kind(np.zeros(1, np.float32))
    before = run(tmp_path / "before", task)
    task.shift[:] = 5.0
    after = run(tmp_path / "after", task)
    assert np.any(before["second"]["bias"] != after["second"]["bias"])
    task, make = kind(np.zeros(1, np.float32)), programs.kept(lambda task: [task])
    assert make(task) is not make(task)
    dead = weakref.ref(task)
    del task
    gc.collect()
    assert dead() is None


def test_few_are_kept_and_all_can_be_dropped() -> None:
    config = toy_config()
    first = step_of(config)
    programs.forget()
    assert step_of(config) is not first
    first = step_of(config)
    for width in range(20, 30):
        step_of(config, ToyTask(width))
    assert step_of(config) is not first
