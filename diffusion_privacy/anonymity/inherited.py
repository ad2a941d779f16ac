"""E6: the bound that training hands down to every record.

If the map from data to released model is (ε, δ)-differentially private in the record, so is the map from data to one
drawn image (post-processing), and for the event "the detector names record p"

    q_p <= e^ε q_p^(−p) + δ,

q_p^(−p) the rate of the same training WITHOUT the record (removed, or replaced: whatever the guarantee's relation
says). It holds for a record nobody audited, and for detectors nobody has built yet.

Both rates are probabilities over training AND sampling. One trained model is one draw of the first; however many
images it gives, they tell about that one model. The limit is therefore over models: each gives its own hit rate, a
number in [0, 1] with mean q^(−p), independent between models, and `betting.upper_mean` bounds that mean. With M models
and no hit at all it is at most 1 − (α/2)^{1/M}, some 3.5/M at 95 %; a rate of 1 in M trainings could not be seen. The
bound speaks of training on average: a given released model may be worse than the average, by chance.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from diffusion_privacy.anonymity import betting, intervals
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Estimate

ASSUMES = (
    "the training guarantee holds as stated, in the audited record, under its own relation (removed or replaced)",
    "the models without the record were trained independently, each with its own seeds, by the same private training",
    "it is a probability over training and sampling, not one of the released model alone",
    "a reproduction is what the detector says it is: its misses are not allowed for",
)


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Rate of hits over several models.

    Attributes:
      value: mean over models of each model's own rate; unbiased.
      upper: one-sided limit at ``confidence``.
      confidence: probability with which ``upper`` is not below the rate.
      models, images: how many were trained, how many images were drawn in all.
      spread: standard deviation of the models' rates; NaN for one model. Sampling alone gives √(q/N) or so: far more
        says that models differ.
    """

    value: float
    upper: float
    confidence: float
    models: int
    images: int
    spread: float


def pooled(hits: np.ndarray, images: np.ndarray, confidence: float = 0.95) -> Pooled:
    """Upper limit of the hit rate over training and sampling.

    Args:
      hits: ``[M]`` hits of each independently trained model.
      images: ``[M]`` images drawn from it, chosen before looking.
      confidence: one-sided.

    Raises:
      InputError: counts that no experiment can give, no model, or confidence outside (0, 1).
    """
    hits, images = np.asarray(hits, float), np.asarray(images, float)
    whole = hits.ndim == 1 and hits.shape == images.shape and hits.size > 0
    if not whole or np.any((hits < 0) | (hits > images) | (images < 1) | (hits % 1 != 0) | (images % 1 != 0)):
        raise InputError("hits: expected for each model a whole number between 0 and its number of images (at least 1)")
    if not 0 < confidence < 1:
        raise InputError(f"confidence: expected a number strictly between 0 and 1, got {confidence}")
    rates = hits / images
    upper = max(betting.upper_mean(rates, 1 - confidence), float(rates.mean()))
    spread = float(np.std(rates, ddof=1)) if rates.size > 1 else math.nan
    return Pooled(float(rates.mean()), upper, confidence, rates.size, int(images.sum()), spread)


def pooled_copies(hits: np.ndarray, images: np.ndarray, confidence: float = 0.95) -> Pooled:
    """Upper limit of the hit rate over private copies of a data set, exact (Clopper-Pearson) in the number of images.

    `pooled` bounds a mean over models, of which each is one draw. A private copy is more: given the flow, which the
    copies share, each of its images has its own noise, so that all images of all copies are independent. Their hit
    probabilities differ from record to record; the limit of equal ones holds all the same, because a sum of
    independent hits with unequal probabilities has a lighter lower tail, below its mean by one or more, than a
    binomial of the same mean (Hoeffding 1956, theorem 4), and from a confidence of three quarters on the limit stands
    further above the count than that.

    The rate is that of one image of the copy picked at random. It is over the noise of the mechanism, GIVEN the flow:
    the latent step is private for every fixed flow, so that E6 holds given the flow too.

    Args:
      hits: ``[M]`` images of each copy that the detector names.
      images: ``[M]`` images in it.
      confidence: one-sided, at least three quarters.

    Raises:
      InputError: as `pooled`, or less confidence.
    """
    plain = pooled(hits, images, confidence)
    if confidence < 0.75:
        raise InputError(f"confidence: expected at least 0.75, got {confidence}")
    upper = intervals.clopper_pearson(int(np.sum(hits)), plain.images, 2 * confidence - 1)[1]
    return dataclasses.replace(plain, value=float(np.sum(hits)) / plain.images, upper=upper)


def images_needed(bound: float, epsilon: float, delta: float, *, confidence: float = 0.95) -> int | None:
    """Smallest number of images of private copies that certifies q_p <= ``bound`` if none is a hit (`pooled_copies`).

    None where δ alone exceeds the bound.
    """
    rate = _rate_needed(bound, epsilon, delta)
    return None if rate is None else math.ceil(math.log(1 - confidence) / math.log1p(-rate))


def inherited(without: Pooled, epsilon: float, delta: float, *, steps: int = 0) -> Estimate:
    """Upper limit of q_p from models trained without the record.

    Args:
      without: of `pooled`.
      epsilon: ε >= 0 in nats, of the whole training (or of the private copy that it was trained on).
      delta: δ in [0, 1).
      steps: network calls of one image.

    Returns:
      an `Estimate` with lower = 0 (nothing is claimed from below); its value is the bound at the measured rate. Its
      two-sided level is 2·confidence − 1, so that the upper limit errs with (1 − level)/2 as everywhere. Not reliable
      where the bound says nothing (upper = 1).

    Raises:
      InputError: ε or δ out of range, or a confidence of one half or less.
    """
    if not (math.isfinite(epsilon) and epsilon >= 0 and 0 <= delta < 1):
        raise InputError(f"epsilon, delta: expected 0 <= ε < inf and 0 <= δ < 1, got {epsilon}, {delta}")
    if without.confidence <= 0.5:
        raise InputError(f"confidence: expected more than 0.5, got {without.confidence}")
    # ε may be so large that e^ε overflows; the bound is 1 then.
    grown = [math.exp(min(epsilon, 700.0)) * rate + delta for rate in (without.value, without.upper)]
    value, upper = (min(v, 1.0) for v in grown)
    reasons = () if upper < 1 else (f"the bound is 1: too few models ({without.models}) or too large an ε",)
    return Estimate(
        method="inherited",
        log_value=math.log(value) if value > 0 else -math.inf,
        log_stderr=math.inf,
        lower=0.0,
        upper=upper,
        level=2 * without.confidence - 1,
        n=without.models,
        ess=float(without.models),
        reliable=upper < 1,
        network_calls=without.images * steps,
        reasons=reasons,
    )


def models_needed(bound: float, epsilon: float, delta: float, *, confidence: float = 0.95) -> int | None:
    """Smallest number of models that certifies q_p <= ``bound`` if none gives a hit; None where δ alone exceeds it."""
    rate = _rate_needed(bound, epsilon, delta)
    return None if rate is None else betting.zeros_needed(rate, 1 - confidence)


def _rate_needed(bound: float, epsilon: float, delta: float) -> float | None:
    """The limit of the rate without the record that certifies ``bound``; None where there is none."""
    if not 0 < bound < 1:
        raise InputError(f"bound: expected a number strictly between 0 and 1, got {bound}")
    rate = (bound - delta) * math.exp(-epsilon)
    return min(rate, 1 - 1e-12) if rate > 0 else None
