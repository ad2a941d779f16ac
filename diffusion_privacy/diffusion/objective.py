"""What a denoiser predicts, its conversion to the score, and denoising score matching.

A network may predict the noise ε, the clean image x_0, v (Salimans & Ho, arXiv 2202.00512) or the score itself. All are
linear in the pair (x_0, ε) that a noisy x = α x_0 + σ ε is made of, and every conversion goes through that pair here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_privacy.diffusion.sde import DDPM, expand
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import SDE, Array, ConditionalScore, PyTree, ScoreFn

PREDICTIONS = ("eps", "x0", "v", "score")
WEIGHTINGS = ("simple", "likelihood")

Apply = Callable[[PyTree, Array, Array, Array | None], Array]
"""``apply(params, x[B, ...], t[B], label[B] | None) -> output[B, ...]``."""


def check_prediction(prediction: str) -> None:
    """Raises InputError unless ``prediction`` is one of `PREDICTIONS`."""
    if prediction not in PREDICTIONS:
        raise InputError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")


def check_output(output: Array, x: Array) -> None:
    """Raises InputError unless a network's output has the shape of its input: another would be broadcast silently."""
    if jnp.shape(output) != jnp.shape(x):
        raise InputError(f"network: expected an output of the shape of x, {jnp.shape(x)}, got {jnp.shape(output)}")


def to_pair(prediction: str, output: Array, x: Array, t: Array, sde: SDE) -> tuple[Array, Array]:
    """(x_0, ε) that ``output[B, ...]`` stands for at ``x[B, ...]``, ``t[B]``; needs t > 0 and α(t) > 0.

    v is taken in the normalised coefficients α̂ = α/n, σ̂ = σ/n, n = √(α² + σ²): v = α̂ ε − σ̂ x_0, whose scale is that
    of the data for VE and sub-VP too; for VP n = 1 and it is the paper's.

    Raises:
      InputError: an unknown prediction, or an output that has not the shape of ``x``.
    """
    check_prediction(prediction)
    check_output(output, x)
    alpha, sigma = expand(sde.alpha(t), x), expand(sde.sigma(t), x)
    if prediction == "x0":
        return output, (x - alpha * output) / sigma
    if prediction == "v":
        n = jnp.sqrt(alpha**2 + sigma**2)
        # Two steps, (σ x/n + α v)/n, come out infinite when jaxlib 0.11 fuses them on a CPU.
        scale = 1 / (n * n)
        return (alpha * x - sigma * n * output) * scale, (sigma * x + alpha * n * output) * scale
    eps = output if prediction == "eps" else -sigma * output
    return (x - sigma * eps) / alpha, eps


def from_pair(prediction: str, x0: Array, eps: Array, t: Array, sde: SDE) -> Array:
    """What such a network should output for the pair ``(x0, eps)[B, ...]`` at ``t[B]``; inverse of `to_pair`."""
    check_prediction(prediction)
    alpha, sigma = expand(sde.alpha(t), x0), expand(sde.sigma(t), x0)
    if prediction == "x0":
        return x0
    if prediction == "eps":
        return eps
    if prediction == "score":
        return -eps / sigma
    return (alpha * eps - sigma * x0) / jnp.sqrt(alpha**2 + sigma**2)


def to_score(prediction: str, output: Array, x: Array, t: Array, sde: SDE) -> Array:
    """∇ log p_t(x) = −ε/σ (arXiv 2011.13456, eq. 5) from a network's ``output[B, ...]`` at ``x[B, ...]``, ``t[B]``.

    Raises:
      InputError: as `to_pair`.
    """
    if prediction == "score":
        check_output(output, x)
        return output
    return -to_pair(prediction, output, x, t, sde)[1] / expand(sde.sigma(t), x)


@dataclasses.dataclass(frozen=True)
class _Score:
    """The part of a score that is compiled in; parameters and label are arguments. Equal parts share a program."""

    apply: Apply
    sde: SDE
    prediction: str

    def __call__(self, params: PyTree, label: Array | None, x: Array, t: Array) -> Array:
        rows = None if label is None else jnp.broadcast_to(label, t.shape)
        return to_score(self.prediction, self.apply(params, x, t, rows), x, t, self.sde)


def score_fn(apply: Apply, params: PyTree, sde: SDE, prediction: str, label: Array | None = None) -> ScoreFn:
    """The score of a trained denoiser as ``(x[B, ...], t[B]) -> [B, ...]``.

    The result is a pytree (`jax.tree_util.Partial`) whose leaves are ``params`` and ``label``: given to a compiled
    function as an argument, another model of the same shape reuses the program.

    Args:
      apply: the network.
      params: its parameters.
      sde: the forward process it was trained with.
      prediction: one of `PREDICTIONS`.
      label: ``[B]`` or a scalar, which is repeated over the batch; None for no class.

    Raises:
      InputError: unknown prediction.
    """
    check_prediction(prediction)
    return jax.tree_util.Partial(_Score(apply, sde, prediction), params, label)


def conditional_score_fn(apply: Apply, params: PyTree, sde: SDE, prediction: str) -> ConditionalScore:
    """`score_fn` with the label as first argument: ``(label[B] or scalar, x[B, ...], t[B]) -> [B, ...]``.

    Raises:
      InputError: unknown prediction.
    """
    check_prediction(prediction)
    return jax.tree_util.Partial(_Score(apply, sde, prediction), params)


def training_times(sde: SDE, key: Array, position: Array, batch_size: int) -> Array:
    """One time per example, evenly spread over the batch: ``[B]`` in [t_min, 1].

    t_i = t_min + (1 − t_min)·frac(u + i/batch_size) with one uniform u of the step (Kingma et al., arXiv 2107.00630,
    appendix I.1): each t_i is uniform, the batch is stratified. A `DDPM` gets i/T, i uniform in 1 … T, in the same way.

    Args:
      key: key of the step, the same on every device.
      position: place of each example in the whole batch, int ``[B]``; a device holds some of them.
      batch_size: size of the whole batch over all devices.
    """
    u = jax.random.uniform(key)
    place = jnp.mod(u + position / batch_size, 1.0)
    if isinstance(sde, DDPM):
        return jnp.minimum(jnp.floor(place * sde.num_steps) + 1, sde.num_steps) / sde.num_steps
    return sde.t_min + (1 - sde.t_min) * place


def denoising_loss(
    apply: Apply,
    params: PyTree,
    sde: SDE,
    x0: Array,
    key: Array,
    position: Array,
    *,
    batch_size: int,
    prediction: str = "eps",
    weighting: str = "simple",
    label: Array | None = None,
) -> Array:
    """Denoising score matching, one loss an example: ``[B]`` (Vincent 2011; Song et al., arXiv 2011.13456, eq. 7).

    Every draw is keyed by (key, position), so that the losses do not depend on how the batch is split.

    Args:
      apply, params: the network.
      sde: the forward process.
      x0: clean records ``[B, ...]``.
      key: key of the step.
      position: place of each example in the whole batch, int ``[B]``.
      batch_size: size of the whole batch over all devices.
      prediction: one of `PREDICTIONS`.
      weighting: ``"simple"``: mean over dimensions of (ε − ε̂)², whatever is predicted (Ho et al., eq. 14);
        ``"likelihood"``: (1 − t_min)·½ g²/σ²·(ε − ε̂)², whose mean bounds −log p(x_0) in nats per dimension up to terms
        free of the network (Song et al., arXiv 2101.09258, eq. 7).
      label: classes ``[B]`` or None.

    Raises:
      InputError: unknown prediction or weighting.
    """
    check_prediction(prediction)
    if weighting not in WEIGHTINGS:
        raise InputError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    # Two children of the step's key: fold_in(key, position) is for noise, so u must not share the parent.
    time_key, noise_key = jax.random.split(key)
    t = training_times(sde, time_key, position, batch_size).astype(x0.dtype)
    eps = normal_rows(noise_key, position, x0)
    mean, sigma = sde.marginal(x0, t)
    x = mean + expand(sigma, x0) * eps
    eps_hat = to_pair(prediction, apply(params, x, t, label), x, t, sde)[1]
    loss = jnp.mean(jnp.square(eps - eps_hat).reshape(x.shape[0], -1), axis=1)
    if weighting == "simple":
        return loss
    g = sde.coefficients(x, t)[1]
    return (1 - sde.t_min) * 0.5 * jnp.square(g / sigma) * loss


def normal_rows(key: Array, index: Array, like: Array) -> Array:
    """Standard normal rows shaped and typed as ``like[B, ...]``, row i keyed by ``fold_in(key, index[i])``.

    Drawn flat: XLA compiles the random bits of many-dimensional arrays slowly.
    """
    size = math.prod(like.shape[1:])
    draw = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (size,), like.dtype))
    return draw(index).reshape(like.shape)
