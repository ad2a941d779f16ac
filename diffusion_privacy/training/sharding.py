"""Devices: one mesh with a ``data`` axis over every device of every host, and the ways onto and over it.

A step is written for the rows that one device holds, with explicit `jax.lax.psum`, and compiled by jit(shard_map).
jit with sharded inputs is not used: it computes wrong per-example gradients of convolutions (zero for every shard but
the first, without an error).

A job of several processes runs the same program in each. Numbers that a program computes over the mesh come back to
all of them (`to_host`), so that all take the same decisions; what goes to the workdir is written by the first (`once`).
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import platform
from diffusion_privacy.types import PyTree

DATA = "data"
"""Name of the mesh axis; `jax.lax.psum(x, DATA)` sums over all devices of all hosts."""
REPLICATED = P()
SHARDED = P(DATA)

_HEARTBEAT_S = 100
"""Silence after which a process counts as lost. The others then end with an error, whatever they are waiting for."""
_PATIENCE_S = 10.0
"""How long a process that has failed waits for the others to fail too, before it leaves them."""


def initialise(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> bool:
    """Joins the processes of a job; call before anything touches a device. Returns whether there is a job to join.

    Returns when all processes are there and have summed a number over all devices: a machine that cannot be reached is
    found here, and CPU devices, which give each other 30 s for the first connection, have made it.

    With all three arguments they are used as given. With none, SLURM (srun), Open MPI, an indexed Kubernetes job and
    a TPU pod are recognised from the environment; elsewhere this does nothing. Where srun or mpirun started one process
    a machine, it gets all devices of the machine; where they started several, each gets the one of its number.

    Args:
      coordinator: ``"host:port"`` of process 0, the same on every process.
      num_processes: processes in the job.
      process_id: this process, 0 <= process_id < num_processes.

    Raises:
      InputError: only some of the three are given, or one is out of range.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        if not _in_cluster_job(os.environ):
            return False
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_S)
        _begin()
        return True
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError(f"distributed job: {', '.join(missing)} missing; give all of {', '.join(given)} or none")
    if ":" not in coordinator:
        raise InputError(f"distributed job: coordinator must be host:port, got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        raise InputError(f"distributed job: process_id must be in [0, {num_processes}), got {process_id}")
    jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_S)
    _begin()
    return True


def _begin() -> None:
    if _alone_on_its_machine(os.environ):
        # jax assumes one process a device under these launchers, and would leave the other devices out without a word.
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, "all")
    sync("initialise")


def _alone_on_its_machine(env: Mapping[str, str]) -> bool:
    """Whether srun or mpirun started one process on each machine."""
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""))
    return re.fullmatch(r"1(\(x\d+\))?", tasks) is not None


def _in_cluster_job(env: Mapping[str, str]) -> bool:
    """Whether this process is one of several that a launcher started together; InputError where it cannot join them."""
    several = {"SLURM_STEP_NODELIST": "SLURM_NTASKS", "OMPI_MCA_orte_hnp_uri": "OMPI_COMM_WORLD_SIZE"}
    for present, count in several.items():
        if present in env and int(env.get(count, "1")) > 1:
            return True
    if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        # Open MPI 5 no longer says where its first process is; alone, each would write into the others' workdir.
        raise InputError(
            "distributed job: mpirun started several processes, which cannot find each other under this version of "
            "Open MPI; give --coordinator, --num_processes and --process_id=$OMPI_COMM_WORLD_RANK"
        )
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return True
    return "," in env.get("TPU_WORKER_HOSTNAMES", "")


def is_first() -> bool:
    """Whether this process is the one that writes and speaks; true where there is only one."""
    return jax.process_index() == 0


def sync(what: str) -> None:
    """Returns when every process of the job has come here; ``what`` must be the same text on all of them."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def once(write: Callable[[], object], what: str) -> None:
    """``write()`` on the first process alone, while the others wait, so that they find what it wrote.

    All processes must come here. They also wait before: whoever asks whether a file exists before it calls `once` gets
    the answer that the first process got. If ``write`` raises, the job ends (`leave`).
    """
    sync(f"before {what}")
    if is_first():
        write()
    sync(f"after {what}")


def from_first(number: int) -> int:
    """The first process's ``number``, a small whole one, on every process. All must come here."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def leave(status: int) -> NoReturn:
    """Ends this process of a job with ``status``, also where the others cannot be waited for.

    Where all end with an error of their own (a wrong config), each keeps its status. Where this one alone has failed,
    the others wait for it in a sum over devices; a normal exit would in turn wait for them. They end when their
    connection to it breaks, or when its heartbeat is missed (`_HEARTBEAT_S`).
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_count() > 1:
        farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        farewell.start()
        farewell.join(_PATIENCE_S)
    os._exit(status)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One ``data`` axis over ``devices`` (default: every device of every host)."""
    # Not jax.make_mesh: its axes are Explicit, under which vmapped reshapes fail.
    return Mesh(np.array(jax.devices() if devices is None else devices), (DATA,))


def data_parallel(
    fn: Callable[..., Any],
    mesh: Mesh,
    *,
    in_specs: PyTree,
    out_specs: PyTree,
    donate: tuple[int, ...] = (),
    convolutions: str = "ynnpack",
) -> Callable[..., Any]:
    """Compiles ``fn``, written for one device's rows, over the mesh. Not to be called inside another `jax.jit`.

    Args:
      fn: sees the local part of each `SHARDED` argument and the whole of each `REPLICATED` one; sums over devices
        are its own business (`jax.lax.psum(x, DATA)`). A `REPLICATED` output must be equal on all devices.
      mesh: of `data_mesh`.
      in_specs: one of `REPLICATED`, `SHARDED` for each argument (or a pytree of them).
      out_specs: the same for the outputs.
      donate: positions of arguments whose memory the outputs may take; their arrays are gone after the call.
      convolutions: which library convolves on a CPU, a name of `platform.CONVOLUTIONS`. XLA's own choice evaluates
        networks and flows fastest, and what trains is faster with ``"default"``.
    """
    # check_vma=True would sum gradients of replicated parameters by itself and so mix per-example gradients.
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate, compiler_options=platform.compiler_options(convolutions))


def pad_batch(batch: Mapping[str, np.ndarray], multiple: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pads a batch to a multiple of ``multiple`` rows; returns it with a mask float32[B'], 1 real and 0 padding.

    Padding repeats a real row, which is finite where the data are, so that masking it out of a sum also keeps it out
    of the gradient (0 times infinity would not). A ``mask`` already in the batch is taken out of it; the rows that it
    leaves out are replaced in the same way.

    Raises:
      InputError: the batch has no rows or no real ones, or its arrays differ in their number of rows.
    """
    sizes = {name: len(value) for name, value in batch.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise InputError(f"batch: expected arrays with one and the same positive number of rows, got {sizes}")
    size = next(iter(sizes.values()))
    mask = np.zeros(math.ceil(size / multiple) * multiple, np.float32)
    mask[:size] = batch.get("mask", 1.0)
    real = np.flatnonzero(mask)
    if len(real) == 0:
        raise InputError(f"batch: expected at least one real row, the mask leaves out all {size}")
    rows = np.where(mask > 0, np.arange(len(mask)), real[-1])
    return {name: np.asarray(value)[rows] for name, value in batch.items() if name != "mask"}, mask


def in_pieces(fn: Callable[..., PyTree], piece: int, *rows: PyTree) -> PyTree:
    """``fn(*rows)``, ``piece`` rows after the other where there are more, so that what is in hand stays in a cache.

    Args:
      fn: what one row gives must not depend on the rows beside it; its outputs have a row for each.
      piece: rows at a time; 0 for all at once.
      rows: pytrees of arrays ``[n, ...]`` of one device; None is an empty one.

    Raises:
      ValueError: ``n`` is larger than ``piece`` and no multiple of it.
    """
    count = len(jax.tree.leaves(rows)[0])
    if not piece or count <= piece:
        return fn(*rows)
    if count % piece:
        raise ValueError(f"expected a multiple of {piece} rows, got {count}")
    parts = jax.tree.map(lambda a: a.reshape(-1, piece, *a.shape[1:]), rows)
    out = jax.lax.map(lambda part: fn(*part), parts)
    return jax.tree.map(lambda a: a.reshape(count, *a.shape[2:]), out)


def put_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Splits arrays with equal leading axes over the mesh.

    Every process passes the same global numpy arrays and sends only the rows of its own devices. The number of rows
    must divide by ``mesh.size``: see `pad_batch`.
    """
    return _put(tree, NamedSharding(mesh, SHARDED))


def local_rows(count: int, mesh: Mesh) -> np.ndarray:
    """Which of ``count`` rows, split over the mesh as by `put_batch`, this process's devices hold: int64, increasing.

    Raises:
      ValueError: the number of devices does not divide ``count``.
    """
    places = NamedSharding(mesh, SHARDED).addressable_devices_indices_map((count,))
    parts = [np.arange(count)[index] for index in places.values() if index is not None]
    return np.sort(np.concatenate(parts))


def put_rows(tree: PyTree, count: int, mesh: Mesh) -> PyTree:
    """`put_batch` where each process passes only its own rows, those of `local_rows`, of ``count`` in all."""
    split = NamedSharding(mesh, SHARDED)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(split, np.asarray(x), (count, *np.shape(x)[1:])), tree
    )


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every array on every device; every process passes the same values."""
    # Through fresh numpy arrays: device_put may alias a source that donation would then delete.
    return _put(jax.tree.map(lambda x: np.array(x, copy=True), tree), NamedSharding(mesh, REPLICATED))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """`put_replicated` for what is not donated: typed keys and arrays that lie on the mesh already may be among it."""
    whole = NamedSharding(mesh, REPLICATED)
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)

    def one(x: Any) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, whole)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put_replicated(jax.random.key_data(x), mesh), impl=jax.random.key_impl(x))
        return put_replicated(x, mesh)

    return jax.tree.map(one, tree)


def to_host(tree: PyTree) -> PyTree:
    """All of every array as numpy, on every process; what lies on devices of other processes is sent. All must call."""

    def one(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            mesh = x.sharding.mesh  # type: ignore[attr-defined]  # all such arrays here come from `data_parallel`
            x = jax.device_put(x, NamedSharding(mesh, REPLICATED))
        return np.asarray(x)

    return jax.tree.map(one, tree)


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x, np.shape(x)), tree)
