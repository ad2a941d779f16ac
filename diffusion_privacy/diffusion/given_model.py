"""A trained model as an audit needs it: its score, and the sampler that it is used with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.diffusion import objective
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import SDE, Array, ScoreFn

Denoiser = Callable[[Array, Array], Array]
"""``output(x[B, ...], t[B]) -> [B, ...]``: noise, clean image or v, as a network predicts it."""


@dataclasses.dataclass(frozen=True, eq=False)
class GivenModel:
    """A model that somebody else trained.

    Attributes:
      score: ``score(x[B, ...], t[B]) -> [B, ...]``. A `jax.tree_util.Partial` whose leaves are its parameters keeps
        them out of the compiled program. Those of any other callable are compiled in, as they are at the first call:
        `audits.own_model.audit_model` looks at them once an audit, estimators called by themselves do not
        (`anonymity.lanes.fresh`).
      chain: forward process and sampler, steps and clipping included: what is audited is this sampler.
      notes: what a reader of the result should know of where the two came from.

    Raises:
      InputError: a score that cannot be called, or something else than a `Chain`, a forward process alone say.
    """

    score: ScoreFn
    chain: Chain
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise InputError(f"model.score: expected a function score(x, t), got {type(self.score).__name__}")
        if not isinstance(self.chain, Chain):
            found = type(self.chain).__name__
            raise InputError(f"model.chain: expected a diffusion.chain.Chain(sde, steps), got {found}")


def from_denoiser(denoiser: Denoiser, sde: SDE, prediction: str) -> ScoreFn:
    """The score of a denoiser, ``"eps"``, ``"x0"``, ``"v"`` or ``"score"`` (see `diffusion.objective`).

    A `jax.tree_util.Partial` stays one, so that its parameters stay arguments.

    Raises:
      InputError: an unknown prediction.
    """
    partial = denoiser if isinstance(denoiser, jax.tree_util.Partial) else jax.tree_util.Partial(denoiser)
    return objective.score_fn(_call, partial, sde, prediction)


def _call(denoiser: Denoiser, x: Array, t: Array, label: Array | None) -> Array:
    del label
    return denoiser(x, t)


def empirical_score(images: np.ndarray, sde: SDE) -> ScoreFn:
    """The score of a model that has memorised these images and nothing else, in closed form.

    The minimiser of denoising score matching on ``images``: the score of (1/n) Σ_i N(α_t x_i, σ_t² I) (Dombrowski &
    Kainz, arXiv 2306.01363, section 2). A sampler with it gives each image back with probability 1/n, up to the
    sampler's own error: what an audit ought to find.

    Args:
      images: ``[n, ...]``, finite.
      sde: the forward process.

    Returns:
      ``score(x[B, ...], t[B])``, a `jax.tree_util.Partial` that holds the images; a call costs B·n distances.
    """
    return jax.tree_util.Partial(_Empirical(sde), jnp.asarray(images, jnp.float32).reshape(len(images), -1))


@dataclasses.dataclass(frozen=True)
class _Empirical:
    sde: SDE

    def __call__(self, images: Array, x: Array, t: Array) -> Array:
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        flat = x.reshape(len(x), -1)
        gap = flat[:, None] - alpha[:, :, None] * images
        weight = jax.nn.softmax(-jnp.sum(gap**2, axis=2) / (2 * sigma**2))
        mean = jnp.matmul(weight, images, precision="highest")
        return ((alpha * mean - flat) / sigma**2).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class _Host:
    fn: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def __call__(self, x: Array, t: Array) -> Array:
        return jax.pure_callback(self.run, jax.ShapeDtypeStruct(x.shape, x.dtype), x, t, vmap_method="sequential")

    def run(self, x: Array, t: Array) -> np.ndarray:
        out = np.asarray(self.fn(np.asarray(x), np.asarray(t)))
        if out.shape != x.shape or out.dtype.kind != "f":
            raise InputError(
                f"model.score: expected floating [B, ...] of the shape of x, {x.shape}, got {out.dtype} {out.shape}"
            )
        return out.astype(x.dtype)


def from_host(fn: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Denoiser:
    """A numpy function, e.g. one that calls another framework, as a score or a denoiser.

    It is called once a step with a chunk of images, from several threads where there are several devices, and must not
    call jax. Slower than a jax function by the way to the host and back.
    """
    return _Host(fn)


def check(model: GivenModel, shape: tuple[int, ...]) -> None:
    """Calls the score once at every level that the sampler visits, on noise, and looks at what comes back.

    Raises:
      InputError: an output of another shape or type, or one that is not finite; the message names the time. What the
        score raises by itself is passed on with the shapes that it was given.
    """
    times = np.asarray(model.chain.times[1:], np.float32)
    keys = jax.random.split(jax.random.key(0), len(times))
    size = int(np.prod(shape))

    def one(key: Array, t: Array) -> Array:
        sigma = jnp.sqrt(model.chain.sde.alpha(t[None]) ** 2 + model.chain.sde.sigma(t[None]) ** 2)
        x = sigma * jax.random.normal(key, (size,)).reshape(1, *shape)
        out = model.score(x, t[None])
        if jnp.shape(out) != x.shape or not jnp.issubdtype(jnp.result_type(out), jnp.floating):
            raise InputError(
                f"model.score: expected floating [B, ...] of the shape of x, {x.shape}, got "
                f"{jnp.result_type(out)} {jnp.shape(out)}"
            )
        return jnp.all(jnp.isfinite(out))

    try:
        finite = np.asarray(jax.jit(lambda: jax.lax.map(lambda kt: one(*kt), (keys, jnp.asarray(times))))())
    except InputError:
        raise
    except Exception as error:
        # The user's function may raise anything, and a host function's error comes wrapped by jax.
        named = next((line for line in reversed(str(error).splitlines()) if "model.score: " in line), None)
        if named is not None:
            raise InputError(named[named.index("model.score: ") :]) from error
        text = " ".join(str(error).split())[:300]
        raise InputError(
            f"model.score: expected a jax function score(x, t) for x of shape {(1, *shape)} and t of shape (1,), it "
            f"raised {type(error).__name__}: {text} (given_model.from_host takes one of numpy)"
        ) from error
    if not finite.all():
        bad = float(times[np.flatnonzero(~finite)[-1]])
        raise InputError(f"model.score: expected finite numbers, got NaN or infinity at t = {bad:.4g}")
