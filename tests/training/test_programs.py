"""Runs that differ in their records and seeds alone share their programs; all others have programs of their own."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from private_toys import ConvTask, private_config
from training_toys import ToyBatches, ToyTask, to_numpy, toy_config

from diffusion_privacy.anonymity.fingerprints import Disc, cut_patch
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.networks.build import build
from diffusion_privacy.stages.study import planting
from diffusion_privacy.tasks import ScoreTask
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


@dataclasses.dataclass(frozen=True, eq=False)
class Child(ToyTask):
    """Compared as its parent, whose comparison does not know of the shift."""

    shift: float = 0.0

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        return super().loss(params, {**batch, "y": batch["y"] + self.shift}, key)


@dataclasses.dataclass(frozen=True)
class Forgetful(ToyTask):
    """Not compared by all of its fields."""

    shift: float = dataclasses.field(default=0.0, compare=False)

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        return super().loss(params, {**batch, "y": batch["y"] + self.shift}, key)


class Rate(NamedTuple):
    value: float


class Size(NamedTuple):
    value: float


@dataclasses.dataclass(frozen=True)
class Holder:
    """Equal where its part is."""

    part: Any


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
    assert steps.make_step(ToyTask(), config, parts.mesh, elsewhere) is not step_of(config)
    assert steps.make_step(ToyTask(), config, elsewhere.mesh, parts) is not step_of(config)


@pytest.mark.slow
@pytest.mark.lightly_compiled
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


@pytest.mark.parametrize("kind", [Child, Forgetful])
def test_a_task_that_is_compared_by_less_than_it_holds_is_traced_anew(tmp_path: Path, kind: Any) -> None:
    assert kind(shift=0.0) == kind(shift=5.0)
    first, second = run(tmp_path / "first", kind(shift=0.0)), run(tmp_path / "second", kind(shift=5.0))
    assert np.any(first["second"]["bias"] != second["second"]["bias"])


def _closing_over(x: Any) -> Any:
    return lambda y: y + x


_ONE = Rate(1.0)


def _with_default(x: Any, y: Any = _ONE) -> Any:
    return x + y.value


@pytest.mark.parametrize(("first", "second"), [(Rate(1.0), Size(1.0)), (Rate(1.0), (1.0,))])
def test_tuples_of_other_names_are_others(first: Any, second: Any) -> None:
    assert Holder(first) == Holder(second)
    make = programs.kept(lambda holder: [type(holder.part)])
    assert make(Holder(first)) == [type(first)]
    assert make(Holder(second)) == [type(second)]


@pytest.mark.parametrize(
    "part",
    [
        object(), (object(),), frozenset([object()]), FrozenDict({"a": object()}), _closing_over(np.zeros(1)),
        type("Local", (), {"__qualname__": "f.<locals>.Local"}), Holder(object()), Rate(object()), Child(),
        _with_default,
    ],
    ids=lambda part: type(part).__name__,
)  # fmt: skip
def test_what_may_have_changed_is_made_anew(part: Any) -> None:
    make = programs.kept(lambda holder: [holder])
    holder = Holder(part)
    assert make(holder) is not make(holder)
    assert make(holder=holder) is not make(holder=holder)


@pytest.mark.parametrize(
    "part",
    [
        None,
        1,
        True,
        1.5,
        np.dtype("float32"),
        jnp.float32,
        "a",
        (1, ("b",)),
        frozenset([1]),
        FrozenDict({"a": 1}),
        to_numpy,
        Holder,
        Holder(2),
        ToyTask(),
    ],
)
def test_what_is_equal_by_value_is_kept(part: Any) -> None:
    make = programs.kept(lambda holder: [holder])
    assert make(Holder(part)) is make(Holder(part))
    assert make(holder=Holder(part)) is make(holder=Holder(part))


def test_networks_are_kept_by_their_settings() -> None:
    make = programs.kept(lambda task: [task])
    tasks = [ScoreTask(build("mlp", hidden=width, depth=1), VP(), 8) for width in (8, 8, 16)]
    assert make(tasks[0]) is make(tasks[1])
    assert make(tasks[2]) is not make(tasks[0])


def test_partitions_are_equal_by_their_axes() -> None:
    parts = parts_of(toy_config())
    for name in ("axes", "params"):
        moved = jax.tree.map(lambda _: 0, getattr(parts, name))
        assert dataclasses.replace(parts, **{name: moved}) != parts


def test_marks_are_planted_by_their_own_programs() -> None:
    assert planting(Disc(0.5)) is planting(Disc(0.5))
    assert planting(Disc(0.5)) is not planting(Disc(0.0))
    cut = cut_patch(np.zeros((8, 8, 1), np.float32), 4, 4, 1)
    assert planting(cut) is not planting(cut)


def test_few_are_kept_and_all_can_be_dropped() -> None:
    config = toy_config()
    first = step_of(config)
    programs.forget()
    assert step_of(config) is not first
    first = step_of(config)
    for width in range(20, 30):
        step_of(config, ToyTask(width))
    assert step_of(config) is not first
