"""State that does not fit one device: which of its arrays are split over the devices, by rules of the config.

As a rule every device holds the whole state. With rules, an array of the parameters that a rule names is cut along one
axis into as many parts as there are devices, and with it its average and the optimizer's moments: 16 bytes a parameter
in float32 become 16 divided by the number of devices. A step puts the parameters together for the loss (all-gather) and
gives each device the sum of its part of the gradient (reduce-scatter); the update is made part by part. This is fully
sharded data parallelism (Rajbhandari et al., arXiv 1910.02054, stage 3), written out under shard_map: networks know
nothing of it. It changes numbers by the rounding of sums, like the number of devices.

What a step holds for a while is not split: the whole parameters and, until it is scattered, their gradient.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_privacy.errors import InputError
from diffusion_privacy.training.sharding import DATA
from diffusion_privacy.types import Array, PyTree

WHOLE, LARGEST = "whole", "largest"
SMALL = 4096
"""Under ``largest``, arrays of fewer numbers stay whole: sending many small parts costs more than they weigh."""

_WHOLE = -1
"""In a tree of axes: not split."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """``pattern`` is looked for in a parameter's path, e.g. ``params/down_0/kernel``; ``axis`` says how it is cut."""

    pattern: re.Pattern[str]
    axis: int | str


def parse(text: str) -> Rule:
    """A rule of the config: ``"PATTERN: AXIS"``.

    Args:
      text: a regular expression, then after the last colon ``whole``, ``largest`` (the longest axis that the number of
        devices divides) or the number of an axis, from the end if negative.

    Raises:
      InputError: it is not of this form.
    """
    pattern, colon, axis = text.rpartition(":")
    axis = axis.strip()
    number = re.fullmatch(r"-?\d+", axis)
    try:
        if not colon or not (number or axis in (WHOLE, LARGEST)):
            raise re.error("no axis")
        return Rule(re.compile(pattern.strip()), int(axis) if number else axis)
    except re.error as error:
        raise InputError(
            f"training.sharding: expected PATTERN: AXIS, a regular expression and {WHOLE}, {LARGEST} or number; got "
            f"{text!r} ({error})"
        ) from None


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """How a training state lies on a mesh; equal, and hashable, by value.

    Attributes:
      axes: of each array of the state the axis that is split, −1 for none; a tree like the state.
      params: the same of the parameters alone.
      mesh: the devices.
    """

    axes: PyTree
    params: PyTree
    mesh: Mesh

    def _key(self) -> tuple[object, ...]:
        # Dictionaries have no hash; the structure of a tree has.
        trees = [jax.tree.flatten(tree) for tree in (self.axes, self.params)]
        return (*((tuple(leaves), structure) for leaves, structure in trees), self.mesh)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partition) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    @property
    def split(self) -> bool:
        """Whether any array is."""
        return any(axis != _WHOLE for axis in jax.tree.leaves(self.axes))

    @property
    def specs(self) -> PyTree:
        """`jax.sharding.PartitionSpec` of each array."""
        return jax.tree.map(_spec, self.axes)

    @property
    def shardings(self) -> PyTree:
        """`jax.sharding.NamedSharding` of each array."""
        return jax.tree.map(lambda axis: NamedSharding(self.mesh, _spec(axis)), self.axes)

    def create(self, make: Callable[..., PyTree], *arguments: Any) -> PyTree:
        """``make(*arguments)``, compiled so that each device makes its parts and no one has to hold all of them.

        Every process passes the same arguments, numpy arrays. Here jit partitions the program, which is right for
        everything but per-example gradients of convolutions.
        """
        return jax.jit(make, out_shardings=self.shardings)(*arguments)

    def put(self, state: PyTree) -> PyTree:
        """The state on the mesh, from numpy arrays or from arrays on any device; every process passes the same one."""

        def one(x: Any, sharding: NamedSharding) -> jax.Array:
            # A copy: what is donated must not be somebody else's memory.
            host = np.array(x, copy=True)
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        return jax.tree.map(one, state, self.shardings)

    def gather(self, params: PyTree) -> PyTree:
        """Inside the step: the whole parameters from each device's parts. Its derivative sums and scatters."""
        return jax.tree.map(
            lambda x, axis: x if axis == _WHOLE else jax.lax.all_gather(x, DATA, axis=axis, tiled=True),
            params,
            self.params,
        )

    def sum_gradients(self, gradients: PyTree) -> PyTree:
        """Inside the step: sums over devices what `gather`'s derivative has not summed yet."""
        axes = jax.tree.leaves(self.params)
        leaves, structure = jax.tree.flatten(gradients)
        summed = iter(jax.lax.psum([g for g, axis in zip(leaves, axes, strict=True) if axis == _WHOLE], DATA))
        return jax.tree.unflatten(
            structure, [next(summed) if axis == _WHOLE else g for g, axis in zip(leaves, axes, strict=True)]
        )

    def norm(self, gradients: PyTree) -> Array:
        """Inside the step: the Euclidean norm over all parameters of summed gradients."""
        if not self.split:
            return optax.tree.norm(gradients)
        squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradients)]
        axes = jax.tree.leaves(self.params)
        zero = jnp.float32(0)
        parts = sum((s for s, axis in zip(squares, axes, strict=True) if axis != _WHOLE), zero)
        whole = sum((s for s, axis in zip(squares, axes, strict=True) if axis == _WHOLE), zero)
        return jnp.sqrt(jax.lax.psum(parts, DATA) + whole)


def of(state: Any, rules: Sequence[str], mesh: Mesh) -> Partition:
    """Applies the rules to a state.

    The first rule whose pattern is found in a parameter's path decides; what no rule names is whole. Arrays of the
    average and of the optimizer follow the parameter whose path theirs ends with, if they have its shape.

    Args:
      state: a `state.TrainState` of arrays or of their shapes.
      rules: see `parse`; none leaves everything whole.
      mesh: of `sharding.data_mesh`.

    Raises:
      InputError: a rule that names no parameter, or an axis that is not there or not divisible.
    """
    parsed = [parse(rule) for rule in rules]
    leaves, structure = jax.tree_util.tree_flatten_with_path(state.params)
    used, axes = set(), {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        number = next((i for i, rule in enumerate(parsed) if rule.pattern.search(name)), None)
        used.add(number)
        axis = _WHOLE if number is None else _axis(name, leaf.shape, parsed[number].axis, mesh.size)
        axes[path] = (leaf.shape, axis)
    for i, rule in enumerate(parsed):
        if i not in used:
            raise InputError(f"training.sharding: no parameter is left for the pattern {rule.pattern.pattern!r}")

    def follow(path: tuple[Any, ...], leaf: Any) -> int:
        tails = (axes.get(path[i:]) for i in range(len(path)))
        return next((axis for shape, axis in filter(None, tails) if shape == leaf.shape), _WHOLE)

    params = jax.tree.unflatten(structure, [axes[path][1] for path, _ in leaves])
    return Partition(jax.tree_util.tree_map_with_path(follow, state), params, mesh)


def _axis(name: str, shape: tuple[int, ...], wanted: int | str, devices: int) -> int:
    if wanted == WHOLE:
        return _WHOLE
    if isinstance(wanted, str):
        fitting = [axis for axis, length in enumerate(shape) if length % devices == 0]
        if math.prod(shape) < SMALL or not fitting:
            return _WHOLE
        return max(fitting, key=lambda axis: shape[axis])
    axis = wanted + len(shape) if wanted < 0 else wanted
    if not 0 <= axis < len(shape) or shape[axis] % devices:
        raise InputError(
            f"training.sharding: axis {wanted} of {name} with shape {shape} cannot be split over {devices} devices"
        )
    return axis


def _spec(axis: int) -> P:
    return P() if axis == _WHOLE else P(*[None] * axis, DATA)


def clip_by_norm(limit: float, norm: Callable[[PyTree], Array]) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with a norm that may need other devices: g · min(1, limit/‖g‖)."""

    def update(updates: PyTree, state: optax.EmptyState, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        size = norm(updates)
        clipped = jax.tree.map(lambda g: jnp.where(size < limit, g, (g / size.astype(g.dtype)) * limit), updates)
        return clipped, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
