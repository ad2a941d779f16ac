"""Devices must not show in the numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import sharding
from diffusion_privacy.training.rng import per_record


def mesh_of(count: int):
    if len(jax.devices()) < count:
        pytest.skip(f"needs {count} devices")
    return sharding.data_mesh(jax.devices()[:count])


def test_per_example_gradients_of_a_convolution_on_4_devices_are_those_on_1() -> None:
    """Keep for ever: jit with sharded inputs returns zeros here for every shard but the first, silently."""
    weights = np.random.default_rng(0).standard_normal((3, 3, 2, 4)).astype(np.float32)
    images = np.random.default_rng(1).standard_normal((8, 6, 6, 2)).astype(np.float32)

    def loss(w, image):
        return jnp.sum(jax.lax.conv_general_dilated(
            image[None], w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ) ** 2)  # fmt: skip

    def gradients(w, images):
        return jax.vmap(jax.grad(loss), in_axes=(None, 0))(w, images)

    results = []
    for count in (1, 4):
        mesh = mesh_of(count)
        specs = (sharding.REPLICATED, sharding.SHARDED)
        run = sharding.data_parallel(gradients, mesh, in_specs=specs, out_specs=sharding.SHARDED)
        results.append(np.asarray(run(sharding.put_replicated(weights, mesh), sharding.put_batch(images, mesh))))
    direct = np.stack([jax.grad(loss)(weights, image) for image in images])
    assert np.abs(direct).reshape(8, -1).max(axis=1).min() > 1
    np.testing.assert_allclose(results[0], direct, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(results[1], direct, rtol=1e-4, atol=1e-4)


def test_noise_by_position_does_not_depend_on_devices() -> None:
    positions = np.arange(8, dtype=np.int32)

    def noise(positions):
        return jax.vmap(lambda k: jax.random.normal(k, (3,)))(per_record(jax.random.key(0), positions))

    drawn = []
    for count in (1, 4):
        mesh = mesh_of(count)
        run = sharding.data_parallel(noise, mesh, in_specs=(sharding.SHARDED,), out_specs=sharding.SHARDED)
        drawn.append(np.asarray(run(sharding.put_batch(positions, mesh))))
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=0, atol=1e-6)


def test_put_replicated_does_not_give_its_source_away() -> None:
    """Donating the copy must leave numpy and JAX sources usable."""
    mesh = mesh_of(4)
    source = {"a": np.ones((4, 4), np.float32), "b": jnp.ones((4, 4))}
    run = sharding.data_parallel(
        lambda tree: jax.tree.map(lambda x: x * 2, tree),
        mesh,
        in_specs=(sharding.REPLICATED,),
        out_specs=sharding.REPLICATED,
        donate=(0,),
    )
    doubled = run(sharding.put_replicated(source, mesh))
    for name in source:
        np.testing.assert_array_equal(np.asarray(source[name]), 1)
        np.testing.assert_array_equal(np.asarray(doubled[name]), 2)


def test_pad_batch() -> None:
    batch = {"x": np.arange(7.0), "position": np.arange(7)}
    padded, mask = sharding.pad_batch(batch, 4)
    np.testing.assert_array_equal(mask, [1] * 7 + [0])
    np.testing.assert_array_equal(padded["position"], [0, 1, 2, 3, 4, 5, 6, 6])
    whole, mask = sharding.pad_batch(batch, 7)
    np.testing.assert_array_equal(whole["x"], batch["x"])
    assert mask.sum() == 7


def test_pad_batch_replaces_rows_that_a_mask_leaves_out() -> None:
    batch = {"x": np.array([0.0, np.inf, 2.0, np.nan]), "mask": np.array([1, 0, 1, 0], np.float32)}
    padded, mask = sharding.pad_batch(batch, 3)
    np.testing.assert_array_equal(mask, [1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(padded["x"], [0, 2, 2, 2, 2, 2])
    assert "mask" not in padded


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": np.zeros((0, 3))}, "positive number of rows"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, "one and the same"),
        ({"x": np.zeros(3), "mask": np.zeros(3)}, "at least one real row"),
    ],
)
def test_pad_batch_refuses(batch: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sharding.pad_batch(batch, 2)


def test_rows_go_in_pieces_and_come_back_in_their_order() -> None:
    seen = []

    def fn(x, given, none):
        assert none is None
        seen.append(len(x))
        return 2 * x + given["a"], given["a"][:, 0]

    x = jnp.arange(36.0).reshape(12, 3)
    given = {"a": 100.0 * x[:, :1]}
    for piece, sizes in ((0, [12]), (12, [12]), (13, [12]), (4, [4])):
        seen.clear()
        both, first = sharding.in_pieces(fn, piece, x, given, None)
        np.testing.assert_array_equal(both, 2 * x + 100 * x[:, :1])
        np.testing.assert_array_equal(first, 100 * x[:, 0])
        # A loop's body is traced once for all pieces.
        assert set(seen) == set(sizes)
    with pytest.raises(ValueError, match="expected a multiple of 5 rows, got 12"):
        sharding.in_pieces(fn, 5, x, given, None)


def test_initialise_refuses_half_a_description() -> None:
    with pytest.raises(InputError, match="process_id missing"):
        sharding.initialise("localhost:1234", 2)
    with pytest.raises(InputError, match="host:port"):
        sharding.initialise("localhost", 2, 0)
    with pytest.raises(InputError, match=r"process_id must be in \[0, 2\), got 2"):
        sharding.initialise("localhost:1234", 2, 2)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "8"}, True),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "8"}, False),  # inside an allocation, but not started by srun
        ({"OMPI_MCA_orte_hnp_uri": "1;tcp://1.2.3.4:5", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "1.2.3.4"}, False),
        ({"KUBERNETES_SERVICE_HOST": "1.2.3.4", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
    ],
)
def test_cluster_detection(env: dict, expected: bool) -> None:
    assert sharding._in_cluster_job(env) is expected


def test_processes_of_mpirun_that_cannot_find_each_other_do_not_work_each_for_itself() -> None:
    """Open MPI 5 sets no OMPI_MCA_orte_hnp_uri."""
    with pytest.raises(InputError, match="--coordinator, --num_processes"):
        sharding._in_cluster_job({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"})
    assert not sharding._in_cluster_job({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"})


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, "all"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, "all"),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1"}, None),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "all"),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, None),
    ],
)
def test_one_process_a_machine_gets_all_its_devices(monkeypatch, env: dict, expected: str | None) -> None:
    """jax shows a process of these launchers one device, that of its number on the machine."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    shown: dict[str, str] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: shown.update(jax_cuda_visible_devices="0"))
    monkeypatch.setattr(jax.config, "update", shown.__setitem__)
    assert sharding.initialise("localhost:1", 2, 0)
    assert shown["jax_cuda_visible_devices"] == (expected or "0")


def test_rows_of_one_process_are_all_rows_where_it_is_alone() -> None:
    mesh = mesh_of(4)
    np.testing.assert_array_equal(sharding.local_rows(12, mesh), np.arange(12))
    put = sharding.put_rows({"x": np.arange(12.0)}, 12, mesh)
    np.testing.assert_array_equal(sharding.to_host(put)["x"], np.arange(12.0))
    with pytest.raises(ValueError, match="evenly divide"):
        sharding.local_rows(10, mesh)
