"""Bijections made of bijections: one after another, many of a kind, and the multi-scale split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.flows.bijection import Bijection, Shape, batch_shape, constant_logdet, size
from diffusion_privacy.flows.mixing import permutations, permute
from diffusion_privacy.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Chain:
    """The layers one after another; log-determinants add. Parameters: ``{"layer_0": ..., "layer_1": ...}``.

    Layers without parameters have no entry.
    """

    layers: tuple[Bijection, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a chain needs at least one layer")
        for before, after in zip(self.layers[:-1], self.layers[1:], strict=True):
            if before.out_shape != after.shape:
                raise ValueError(
                    f"{type(before).__name__} gives {before.out_shape}, {type(after).__name__} takes {after.shape}"
                )

    @property
    def shape(self) -> Shape:
        return self.layers[0].shape

    @property
    def out_shape(self) -> Shape:
        return self.layers[-1].out_shape

    def init(self, key: Array) -> PyTree:
        made = {_name(i): layer.init(jax.random.fold_in(key, i)) for i, layer in enumerate(self.layers)}
        return {name: params for name, params in made.items() if params}

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        total = constant_logdet(x, self.shape)
        for i, layer in enumerate(self.layers):
            x, logdet = layer.forward(params.get(_name(i), {}), x, cond)
            total = total + logdet
        return x, total

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        total = constant_logdet(y, self.out_shape)
        for i, layer in reversed(list(enumerate(self.layers))):
            y, logdet = layer.inverse(params.get(_name(i), {}), y, cond)
            total = total + logdet
        return y, total


def _name(i: int) -> str:
    return f"layer_{i}"


@dataclasses.dataclass(frozen=True)
class Stack:
    """``depth`` layers of one kind, each followed by its own fixed permutation of the last axis.

    The parameters of all layers are stacked along a leading axis whether they are scanned or not, so that ``scan``
    chooses how the program is compiled and nothing else: a saved flow can be read with either. Scanned, the program is
    as large as one layer; unrolled, XLA may fuse across layers.

    Attributes:
      layer: a bijection that keeps its shape.
      depth: number of layers, >= 1.
      seed: the permutations are drawn from it.
      scan: compile one layer and loop over it.
    """

    layer: Bijection
    depth: int
    seed: int
    scan: bool = False

    def __post_init__(self) -> None:
        if self.layer.shape != self.layer.out_shape or self.depth < 1:
            raise ValueError(
                f"a stack needs depth >= 1 and a layer that keeps its shape, got {self.depth}, {self.layer}"
            )

    @property
    def shape(self) -> Shape:
        return self.layer.shape

    @property
    def out_shape(self) -> Shape:
        return self.layer.shape

    def init(self, key: Array) -> PyTree:
        return jax.vmap(self.layer.init)(jax.random.split(key, self.depth))

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        orders, _ = permutations(self.seed, self.depth, self.shape[-1])

        def step(h: Array, p: PyTree, order: Array | np.ndarray) -> tuple[Array, Array]:
            h, logdet = self.layer.forward(p, h, cond)
            return permute(h, order), logdet

        return self._run(step, params, orders, x, reverse=False)

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        _, orders = permutations(self.seed, self.depth, self.shape[-1])

        def step(h: Array, p: PyTree, order: Array | np.ndarray) -> tuple[Array, Array]:
            return self.layer.inverse(p, permute(h, order), cond)

        return self._run(step, params, orders, y, reverse=True)

    def _run(self, step: _Step, params: PyTree, orders: np.ndarray, x: Array, *, reverse: bool) -> tuple[Array, Array]:
        total = constant_logdet(x, self.shape)
        if self.scan:

            def body(carry: tuple[Array, Array], xs: tuple[PyTree, Array]) -> tuple[tuple[Array, Array], None]:
                h, logdet = step(carry[0], *xs)
                return (h, carry[1] + logdet), None

            return jax.lax.scan(body, (x, total), (params, jnp.asarray(orders)), reverse=reverse)[0]
        layers = list(zip(unstack(params, self.depth), orders, strict=True))
        for p, order in reversed(layers) if reverse else layers:
            x, logdet = step(x, p, order)
            total = total + logdet
        return x, total


_Step = Callable[[Array, PyTree, Array | np.ndarray], tuple[Array, Array]]


def unstack(tree: PyTree, depth: int) -> list[PyTree]:
    """A tree whose leaves have a leading axis ``depth``, taken apart along it."""
    leaves, structure = jax.tree.flatten(tree)
    rows = [jnp.unstack(leaf) for leaf in leaves]
    return [jax.tree.unflatten(structure, [row[i] for row in rows]) for i in range(depth)]


@dataclasses.dataclass(frozen=True)
class Flatten:
    """(h, w, c) -> (h·w·c,), in the order of `reshape`. logdet = 0."""

    shape: Shape

    @property
    def out_shape(self) -> Shape:
        return (size(self.shape),)

    def init(self, key: Array) -> PyTree:
        del key
        return {}

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        return x.reshape(*batch_shape(x, self.shape), *self.out_shape), constant_logdet(x, self.shape)

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        return y.reshape(*batch_shape(y, self.out_shape), *self.shape), constant_logdet(y, self.out_shape)


@dataclasses.dataclass(frozen=True)
class Split:
    """Part of the channels leaves as latents, the rest goes on through ``inner`` (Dinh et al., 1605.08803, sec. 3.6).

    With the first channels as far as ``inner`` takes them: z = [inner(first channels), the other channels flattened].
    So the latent vector runs from COARSE to FINE: its first numbers come from the deepest stage, its last ones left
    first. A prefix of it is a set of coarse latents.

    Attributes:
      shape: (h, w, c).
      inner: takes (h, w, k) with k < c and gives a vector.
    """

    shape: Shape
    inner: Bijection

    def __post_init__(self) -> None:
        same_grid = len(self.shape) == len(self.inner.shape) and self.shape[:-1] == self.inner.shape[:-1]
        if not same_grid or self.inner.shape[-1] >= self.shape[-1] or len(self.inner.out_shape) != 1:
            raise ValueError(f"cannot split {self.shape} into {self.inner.shape} and a rest")

    @property
    def out_shape(self) -> Shape:
        return (size(self.shape),)

    def init(self, key: Array) -> PyTree:
        return self.inner.init(key)

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        lead, kept = batch_shape(x, self.shape), self.inner.shape[-1]
        coarse, logdet = self.inner.forward(params, x[..., :kept], cond)
        return jnp.concatenate([coarse, x[..., kept:].reshape(*lead, -1)], axis=-1), logdet

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        lead, coarse = batch_shape(y, self.out_shape), size(self.inner.shape)
        first, logdet = self.inner.inverse(params, y[..., :coarse], cond)
        rest = y[..., coarse:].reshape(*lead, *self.shape[:-1], self.shape[-1] - self.inner.shape[-1])
        return jnp.concatenate([first, rest], axis=-1), logdet


def latent_sizes(bijection: Bijection) -> tuple[int, ...]:
    """How many latents left at each split, in the order of the latent vector: coarsest first. Sums to D."""
    if isinstance(bijection, Split):
        rest = size(bijection.shape) - size(bijection.inner.shape)
        return (*latent_sizes(bijection.inner), rest)
    if isinstance(bijection, Chain):
        for layer in bijection.layers:
            if isinstance(layer, Split):
                return latent_sizes(layer)
            if isinstance(layer, Chain) and len(sizes := latent_sizes(layer)) > 1:
                return sizes
    return (size(bijection.out_shape),)
