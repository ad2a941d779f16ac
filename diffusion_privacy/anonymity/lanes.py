"""Records x times x draws as one compiled program.

A lane is one reverse chain. All lanes of an audit go through one `jit(shard_map(...))`, compiled for a chunk of lanes
on each device that fits a memory budget and run as often as it takes: another number of lanes (records that still need
draws, say) does not compile anew. What a lane computes depends on its own numbers alone (its key is a function of
record, component and draw), so chunk size and device count do not change a result. In a job of several processes all of
them call `run` with the same lanes, each computes those of its devices, and all get all results.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_privacy.errors import InputError
from diffusion_privacy.training.programs import by_value
from diffusion_privacy.training.sharding import REPLICATED, SHARDED, data_mesh, data_parallel, replicate, to_host
from diffusion_privacy.types import Array, PyTree

_LOG = logging.getLogger(__name__)
_SPEAK_EVERY = 10.0

LaneFn = Callable[[Any, PyTree, dict[str, Array]], PyTree]
"""``fn(static, operands, lanes {name: [chunk, ...]}) -> pytree of [chunk, ...]``."""


@functools.lru_cache(maxsize=64)
def _program(fn: LaneFn, static: Hashable, mesh: Mesh) -> Callable[[PyTree, PyTree], PyTree]:
    def on_device(operands: PyTree, chunk: dict[str, Array]) -> PyTree:
        return fn(static, operands, chunk)

    return data_parallel(on_device, mesh, in_specs=(REPLICATED, SHARDED), out_specs=SHARDED)


def run(
    fn: LaneFn,
    static: Hashable,
    operands: PyTree,
    lanes: Mapping[str, np.ndarray],
    *,
    chunk: int = 256,
    mesh: Mesh | None = None,
) -> PyTree:
    """Evaluates ``fn`` on every lane.

    Args:
      fn: a module-level function (it is the key of the compilation cache).
      static: hashable settings, compiled in.
      operands: pytree replicated over devices. Scores and detectors given as `jax.tree_util.Partial` carry their
        parameters here as arguments, so that another model of the same shape reuses the compiled program.
      lanes: arrays with one row a lane. Lanes of similar length should be neighbours: a chunk runs as long as its
        longest lane. Chunks are dealt to the devices in turn.
      chunk: lanes per chunk on one device (see `chunk_for_budget`).
      mesh: default: every device.

    Returns:
      ``fn``'s outputs as numpy arrays with one row a lane, in the order of ``lanes``; the same on every process.

    Raises:
      ValueError: no lanes, or chunk < 1.
    """
    mesh = data_mesh() if mesh is None else mesh
    count = len(next(iter(lanes.values()))) if lanes else 0
    if count == 0 or chunk < 1:
        raise ValueError(f"need at least one lane and chunk >= 1, got {count} lanes, chunk {chunk}")
    devices = mesh.devices.size
    width = devices * min(chunk, -(-count // devices))
    program = _program(fn, static, mesh)
    operands = replicate(operands, mesh)
    whole: PyTree = None
    began = spoke = time.monotonic()
    for start in range(0, count, width):
        # Padding repeats the last lane, so that it is as short or long as its neighbours.
        rows = np.minimum(np.arange(start, start + width), count - 1)
        out = program(operands, {name: np.asarray(z)[rows] for name, z in lanes.items()})
        part = to_host(out)
        # Filled in place: a list of rounds and their concatenation would hold every result twice.
        whole = jax.tree.map(lambda z: np.empty((count, *z.shape[1:]), z.dtype), part) if whole is None else whole
        done, now = min(start + width, count), time.monotonic()
        for into, rows_of in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
            into[start:done] = rows_of[: done - start]
        if now - spoke > _SPEAK_EVERY and done < count:
            spoke = now
            rate = done / (now - began)
            name = fn.__name__.strip("_")
            _LOG.info("%s: %d/%d lanes, %.3g lanes/s, ETA %.0f s", name, done, count, rate, (count - done) / rate)
    return whole


def operand(fn: Callable[..., Any]) -> jax.tree_util.Partial:
    """``fn`` as an operand of `run`: a `jax.tree_util.Partial` as it is, any other callable without parameters.

    Wrapping a Partial once more would hide its parameters from jax: they would be compiled in, and every model would
    compile anew.

    What is compiled in is known again by the callable (``fn``, or a Partial's ``func``), not by what it holds: an
    object whose weights are exchanged between two calls is evaluated with those of the first. Weights that may change
    belong into leaves of a Partial; where that cannot be asked for, see `fresh`.
    """
    return fn if isinstance(fn, jax.tree_util.Partial) else jax.tree_util.Partial(fn)


@dataclasses.dataclass(frozen=True, eq=False)
class Fresh:
    """``fn`` under an identity of its own: no program that was compiled before is taken for it."""

    fn: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)


def fresh(fn: Callable[..., Any]) -> jax.tree_util.Partial:
    """`operand` for one audit of a callable that may hold weights where jax does not see them.

    Calls of `run` with one result of this function share programs, those with two results do not. Programs are shared
    beyond it only where the weights are leaves: a Partial that has leaves, and whose ``func`` is a function or an
    object that is compared by its fields, stays as it is. Partials among its arguments are looked at in the same way.
    """
    if not isinstance(fn, jax.tree_util.Partial):
        return jax.tree_util.Partial(Fresh(fn))
    args, keywords = jax.tree.map(
        lambda leaf: fresh(leaf) if isinstance(leaf, jax.tree_util.Partial) else leaf,
        (fn.args, fn.keywords),
        is_leaf=lambda leaf: isinstance(leaf, jax.tree_util.Partial),
    )
    known = by_value(fn.func) and jax.tree.leaves((fn.args, fn.keywords))
    return jax.tree_util.Partial(fn.func if known else Fresh(fn.func), *args, **keywords)


def checked_margin(detect: Callable[..., Array], x: Array, record: Array) -> Array:
    """``detect(x[B, ...], record[B])``, NaN for images that are not finite.

    A detector that compares or clips may turn NaN pixels into an ordinary "not detected": a broken model would come
    out clean.

    Raises:
      InputError: not one margin an image; a column ``[B, 1]`` would be broadcast to every pair of images.
    """
    finite = jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1)
    margin = detect(x, record)
    if jnp.shape(margin) != x.shape[:1]:
        raise InputError(f"detect: expected one margin an image, {x.shape[:1]}, got {jnp.shape(margin)} for {x.shape}")
    return jnp.where(finite, margin, jnp.nan)


def chunk_for_budget(
    score_fn: Callable[..., PyTree], shape: tuple[int, ...], budget_bytes: float, ceiling: int = 1024
) -> int:
    """Largest power of two of lanes, at most ``ceiling``, whose score evaluation stays within ``budget_bytes``.

    Args:
      score_fn: the score, or anything else of ``x[B, ...]`` and ``t[B]``. Given as a `jax.tree_util.Partial`, equal
        ones with parameters of the same shapes are looked at once.
      shape: of one record.
      budget_bytes: memory for temporaries on one device.
      ceiling: upper limit; larger chunks gain nothing on a CPU.
    """
    # By layout alone: parameters that are compiled in as constants take the compiler minutes and their memory twice.
    layout = jax.tree.map(lambda z: jax.ShapeDtypeStruct(jnp.shape(z), jnp.result_type(z)), operand(score_fn))
    leaves, structure = jax.tree.flatten(layout)
    look = _bytes_per_lane if isinstance(score_fn, jax.tree_util.Partial) else _bytes_per_lane.__wrapped__
    fit = int(2 ** np.floor(np.log2(max(budget_bytes / look(structure, tuple(leaves), shape), 1.0))))
    return int(np.clip(fit, 1, ceiling))


@functools.lru_cache(maxsize=16)
def _bytes_per_lane(structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], shape: tuple[int, ...]) -> float:
    """The compiler's own account of temporaries at two batch sizes; nothing is run."""

    def temporaries(rows: int) -> int:
        x, t = jax.ShapeDtypeStruct((rows, *shape), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.float32)
        fn = jax.tree.unflatten(structure, leaves)
        compiled = jax.jit(lambda score, x, t: score(x, t)).lower(fn, x, t).compile()
        analysis = compiled.memory_analysis()
        if analysis is None:
            raise RuntimeError("this backend does not report memory: give the number of lanes per chunk instead")
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes + analysis.argument_size_in_bytes

    return max((temporaries(16) - temporaries(8)) / 8, 4.0 * float(np.prod(shape)))


def lane_keys(key: Array, *indices: Array) -> Array:
    """One key a lane, folded with each index array ``[B]`` in turn."""

    def one(*row: Array) -> Array:
        folded = key
        for index in row:
            folded = jax.random.fold_in(folded, index)
        return folded

    return jax.vmap(one)(*indices)
