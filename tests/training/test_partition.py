"""A state that is split over devices: who holds what, and the same numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from distributed_program import DigitTask, trained
from training_toys import toy_config

from diffusion_privacy.data import pipeline
from diffusion_privacy.errors import InputError
from diffusion_privacy.training import partition, sharding
from diffusion_privacy.training import state as states
from diffusion_privacy.training.partition import Partition
from diffusion_privacy.training.privacy import Privacy


def mesh_of(count: int):
    if len(jax.devices()) < count:
        pytest.skip(f"needs {count} devices")
    return sharding.data_mesh(jax.devices()[:count])


def layout(rules: tuple[str, ...], devices: int = 4) -> Partition:
    config = toy_config(grad_clip_norm=1.0)
    batch = {"image": np.zeros((2, 64), np.float32)}
    make = lambda: states.create(DigitTask(), states.make_optimizer(config), jax.random.key(0), batch)  # noqa: E731
    return partition.of(jax.eval_shape(make), rules, mesh_of(devices))


def leaves(tree) -> dict[str, int]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def test_the_first_rule_that_fits_decides_and_moments_follow() -> None:
    found = layout(("hidden/bias: 0", "kernel: -2"))
    assert leaves(found.params) == {"hidden/bias": 0, "hidden/kernel": 0, "out/bias": -1, "out/kernel": 0}
    assert leaves(found.axes.ema_params) == leaves(found.params)
    moments = [s for s in jax.tree.leaves(found.axes.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    assert leaves(moments[0].mu) == leaves(moments[0].nu) == leaves(found.params)
    assert found.axes.step == -1
    assert moments[0].count == -1
    assert layout(("out: whole", "kernel: 0")).params["out"]["kernel"] == -1
    assert not layout(()).split


def test_largest_takes_the_longest_axis_that_divides_and_leaves_small_arrays_whole() -> None:
    # hidden/kernel has 64 x 64 numbers, out/kernel 64 x 10, which is small.
    assert leaves(layout((".*: largest",)).params) == {
        "hidden/bias": -1,
        "hidden/kernel": 0,
        "out/bias": -1,
        "out/kernel": -1,
    }
    for shape, devices, expected in (((3, 3, 64, 128), 4, 3), ((3, 3, 128, 30), 4, 2), ((5, 5, 500), 3, -1)):
        assert partition._axis("a", shape, "largest", devices) == expected


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (("kernel",), "PATTERN: AXIS"),
        (("kernel: middle",), "PATTERN: AXIS"),
        (("(: 0",), "PATTERN: AXIS"),
        (("kernal: 0",), "no parameter is left for the pattern 'kernal'"),
        (("kernel: 0", "hidden/kernel: 1"), "no parameter is left for the pattern 'hidden/kernel'"),
        (("kernel: 2",), r"axis 2 of hidden/kernel with shape \(64, 64\) cannot be split over 4 devices"),
        (("out/kernel: 1",), r"axis 1 of out/kernel with shape \(64, 10\) cannot be split over 4 devices"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules, message) -> None:
    with pytest.raises(InputError, match=message):
        layout(rules)


def test_a_config_is_checked_before_anything_runs() -> None:
    with pytest.raises(InputError, match=r"training\.sharding: expected PATTERN: AXIS"):
        toy_config(sharding=("nonsense",))
    with pytest.raises(InputError, match=r"training\.sharding must be empty in private training"):
        toy_config(sharding=("kernel: 0",), privacy=Privacy(noise_multiplier=1.0))


def test_clipping_is_that_of_optax() -> None:
    tree = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]])}
    for limit in (6.5, 100.0):
        ours, theirs = partition.clip_by_norm(limit, optax.tree.norm), optax.clip_by_global_norm(limit)
        jax.tree.map(
            np.testing.assert_array_equal,
            ours.update(tree, ours.init(tree))[0],
            theirs.update(tree, theirs.init(tree))[0],
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    return sharding.to_host(trained(tmp_path_factory.mktemp("whole"), mesh_of(1)))


def assert_close(found, wanted, tolerance: float = 2e-4) -> None:
    """To a fiftieth of one update (a rate of .01): Adam divides by the gradient's own size, so that a gradient near 0
    shows the order of its sums, which goes by the processor (2.6e-5 was seen)."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), sharding.to_host(found), wanted
    )


@pytest.mark.parametrize("micro", [1, 2])
def test_each_device_holds_its_part_and_the_numbers_are_the_same(tmp_path: Path, whole, micro: int) -> None:
    state = trained(tmp_path, mesh_of(4), split=True, micro_batches=micro)
    for tree in (state.params, state.ema_params):
        parts = {name: leaf.addressable_shards[0].data.shape for name, leaf in leaves(tree).items()}
        assert parts == {
            "hidden/kernel": (64, 16),
            "hidden/bias": (64,),
            "out/kernel": (16, 10),
            "out/bias": (10,),
        }
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert held < 0.3 * sum(x.nbytes for x in jax.tree.leaves(state))
    assert_close(state, whole)


class Stop(Exception):
    pass


def stopped_at(limit: int, rows):
    def limited(self, step, chosen):
        if step == limit:
            raise Stop
        return rows(self, step, chosen)

    return limited


@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_of_either_kind_is_gone_on_with_as_the_other(tmp_path: Path, whole, first: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.Batches, "rows", stopped_at(4, pipeline.Batches.rows))
        with pytest.raises(Stop):
            trained(tmp_path, mesh_of(4), split=first)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert_close(trained(tmp_path, mesh_of(4), split=not first), whole)


@pytest.mark.parametrize("fault", ["norm", "sum_gradients", "gather"])
def test_planted_faults_show(tmp_path: Path, whole, monkeypatch, fault: str) -> None:
    """A norm of this device's part alone, gradients that are not summed, parts in another order."""
    faults = {
        "norm": lambda self, g: optax.tree.norm(g),
        "sum_gradients": lambda self, g: g,
        "gather": lambda self, params: jax.tree.map(
            lambda x, a: x if a < 0 else jax.lax.all_gather(jnp.flip(x, a), sharding.DATA, axis=a, tiled=True),
            params,
            self.params,
        ),
    }
    monkeypatch.setattr(Partition, fault, faults[fault])
    state = trained(tmp_path, mesh_of(4), split=True)
    with pytest.raises(AssertionError):
        assert_close(state.params, whole.params, 1e-4)


def test_sharding_does_not_decide_what_a_run_computes() -> None:
    config = toy_config()
    split = dataclasses.replace(config, sharding=("kernel: 0",))
    assert states.identity(config, 0, "a") == states.identity(split, 0, "a")
