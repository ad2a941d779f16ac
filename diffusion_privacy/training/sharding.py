"""Devices: one mesh with a ``data`` axis over every device of every host, and the ways onto and over it.

A step is written for the rows that one device holds, with explicit `jax.lax.psum`, and compiled by jit(shard_map).
jit with sharded inputs is not used: it computes wrong per-example gradients of convolutions (zero for every shard but
the first, without an error).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_privacy.errors import InputError
from diffusion_privacy.types import PyTree

DATA = "data"
"""Name of the mesh axis; `jax.lax.psum(x, DATA)` sums over all devices of all hosts."""
REPLICATED = P()
SHARDED = P(DATA)


def initialise(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> bool:
    """Joins the processes of a job; call before anything touches a device. Returns whether there is a job to join.

    With all three arguments they are used as given. With none, SLURM (srun), Open MPI, an indexed Kubernetes job and
    a TPU pod are recognised from the environment; elsewhere this does nothing.

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
        jax.distributed.initialize()
        return True
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError(f"distributed job: {', '.join(missing)} missing; give all of {', '.join(given)} or none")
    if ":" not in coordinator:
        raise InputError(f"distributed job: coordinator must be host:port, got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        raise InputError(f"distributed job: process_id must be in [0, {num_processes}), got {process_id}")
    jax.distributed.initialize(coordinator, num_processes, process_id)
    return True


def _in_cluster_job(env: Mapping[str, str]) -> bool:
    """Whether this process is one of several that a launcher started together."""
    several = {"SLURM_STEP_NODELIST": "SLURM_NTASKS", "OMPI_MCA_orte_hnp_uri": "OMPI_COMM_WORLD_SIZE"}
    for present, count in several.items():
        if present in env and int(env.get(count, "1")) > 1:
            return True
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return True
    return "," in env.get("TPU_WORKER_HOSTNAMES", "")


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
    compiler_options: dict[str, str] | None = None,
) -> Callable[..., Any]:
    """Compiles ``fn``, written for one device's rows, over the mesh.

    Args:
      fn: sees the local part of each `SHARDED` argument and the whole of each `REPLICATED` one; sums over devices
        are its own business (`jax.lax.psum(x, DATA)`). A `REPLICATED` output must be equal on all devices.
      mesh: of `data_mesh`.
      in_specs: one of `REPLICATED`, `SHARDED` for each argument (or a pytree of them).
      out_specs: the same for the outputs.
      donate: positions of arguments whose memory the outputs may take; their arrays are gone after the call.
      compiler_options: of `platform.compiler_options`.
    """
    # check_vma=True would sum gradients of replicated parameters by itself and so mix per-example gradients.
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate, compiler_options=compiler_options)


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


def put_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Splits arrays with equal leading axes over the mesh.

    Every process passes the same global numpy arrays and sends only the rows of its own devices. The number of rows
    must divide by ``mesh.size``: see `pad_batch`.
    """
    return _put(tree, NamedSharding(mesh, SHARDED))


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every array on every device; every process passes the same values."""
    # Through fresh numpy arrays: device_put may alias a source that donation would then delete.
    return _put(jax.tree.map(lambda x: np.array(x, copy=True), tree), NamedSharding(mesh, REPLICATED))


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x, np.shape(x)), tree)
