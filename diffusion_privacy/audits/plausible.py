"""Does the score belong to the schedule it was given with?

A score used with another noise schedule, another prediction type or another range of grey levels still draws images.
They show no record, so that an audit would call the model clean. Two things hold for every model that is used as it was
trained, a memoriser included, and are checked on images that it drew itself:

- from a noisy image it recovers the clean one no worse than both trivial guesses, the noisy image itself (error σ²/α² a
  pixel) and the mean of all images (error: their variance; that of the records if it is larger, since few steps draw
  images of too little variance);
- its images lie in the range of the records.

Only gross faults are found this way. On digits, networks and closed forms used rightly have errors of at most 1.0 of
the better guess, 12 coarse steps included; with a cosine for a linear schedule, scaled for linear, ε for v or x_0, or
time the wrong way it is 1.4 or more. On images without structure (white noise) a wrong schedule can pass.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.diffusion.chain import take
from diffusion_privacy.diffusion.given_model import GivenModel
from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.types import Array, ScoreFn

SIGNAL_TO_NOISE = (10.0, 3.0, 1.0, 0.3, 0.1)
LIMIT = 1.2
_RANGE = 0.4
_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Plausibility:
    """What the two checks found.

    Attributes:
      times: levels looked at.
      errors: mean squared error at each, relative to the better trivial guess; at most 1 for a good denoiser.
      draws, records: (mean, standard deviation) of a pixel of the model's images and of the records.
      faults: what does not hold, in words; empty if nothing was found.
    """

    times: tuple[float, ...]
    errors: tuple[float, ...]
    draws: tuple[float, float]
    records: tuple[float, float]
    faults: tuple[str, ...]


def plausibility(model: GivenModel, drawn: np.ndarray, records: np.ndarray, key: Array) -> Plausibility:
    """Both checks on ``drawn[N, ...]``, images of the model, and ``records[M, ...]`` of the kind it was trained on."""
    x0 = np.asarray(drawn[:_ROWS], np.float32)
    levels = _levels(model)
    errors = np.asarray(
        jax.jit(lambda score, x: _errors(score, model, levels, x, key))(_operand(model.score), x0), np.float64
    )
    spread = max(_spread(x0), _spread(records))
    noise = (model.chain.sigma[levels] / model.chain.alpha[levels]) ** 2
    # Draws and records without any spread leave the noise as the only guess.
    relative = errors / (np.minimum(noise, spread) if spread > 0 else noise)
    faults = []
    if np.max(relative, initial=0.0) > LIMIT:
        worst = int(np.argmax(relative))
        faults.append(
            f"the score does not denoise the model's own images at t = {model.chain.times[levels[worst]]:.3g}: its "
            f"error is {relative[worst]:.2g} times that of a trivial guess (at most {LIMIT} expected): another noise "
            "schedule, prediction type or time than it was trained with?"
        )
    faults += _range_faults(x0, records)
    return Plausibility(
        tuple(float(t) for t in model.chain.times[levels]),
        tuple(float(e) for e in relative),
        (float(x0.mean()), float(x0.std())),
        (float(records.mean()), float(records.std())),
        tuple(faults),
    )


def _spread(images: np.ndarray) -> float:
    return float(np.mean(np.var(np.asarray(images, np.float64).reshape(len(images), -1), axis=0)))


def _operand(score: ScoreFn) -> jax.tree_util.Partial:
    return score if isinstance(score, jax.tree_util.Partial) else jax.tree_util.Partial(score)


def _levels(model: GivenModel) -> np.ndarray:
    """Levels of the chain near each of `SIGNAL_TO_NOISE`, within a factor of 2; coarse chains lack some."""
    log_snr = 2 * (np.log(model.chain.alpha[1:]) - np.log(model.chain.sigma[1:]))
    near = [int(np.argmin(np.abs(log_snr - np.log(snr)))) for snr in SIGNAL_TO_NOISE]
    kept = {i for i, snr in zip(near, SIGNAL_TO_NOISE, strict=True) if abs(log_snr[i] - np.log(snr)) < np.log(2)}
    return np.array(sorted(kept or {near[2]})) + 1


def _errors(score: ScoreFn, model: GivenModel, levels: np.ndarray, x0: Array, key: Array) -> Array:
    chain = model.chain

    def one(level: Array) -> Array:
        at = jnp.full((x0.shape[0],), level)
        noise = jax.random.normal(jax.random.fold_in(key, level), (x0.size,)).reshape(x0.shape)
        alpha, sigma = (expand(take(table, at), x0) for table in (chain.alpha, chain.sigma))
        x = alpha * x0 + sigma * noise
        # Without the sampler's clipping, which would hide a wrong scale.
        return jnp.mean(jnp.square((x + sigma**2 * score(x, take(chain.times, at))) / alpha - x0))

    return jax.lax.map(one, jnp.asarray(levels))


def _range_faults(drawn: np.ndarray, records: np.ndarray) -> list[str]:
    """Compares where nearly all pixels lie; means and variances of a model of few records are its own."""
    ours, theirs = (np.quantile(z, (0.01, 0.99)) for z in (drawn, records))
    if np.max(np.abs(ours - theirs)) <= _RANGE * (theirs[1] - theirs[0]):
        return []
    return [
        f"98 % of the pixels of the model's images lie in [{ours[0]:.2f}, {ours[1]:.2f}], of the records in "
        f"[{theirs[0]:.2f}, {theirs[1]:.2f}]: another range of grey levels, or another kind of images?"
    ]
