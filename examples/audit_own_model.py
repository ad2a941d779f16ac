"""Audit a model that is yours: any score(x, t) or denoiser, with its noise schedule, as a jax function.

    python examples/audit_own_model.py

The model here is a closed form that predicts the noise and has memorised 100 of scikit-learn's digits, so that the
truth is known: a memorised record comes back once in 100 images. Put your own network into `denoiser`; the rest stays.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.audits.own_model import OwnAudit, Plan, audit_model
from diffusion_privacy.data import sources
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.given_model import GivenModel, from_denoiser
from diffusion_privacy.diffusion.sde import DDPM
from diffusion_privacy.types import Array

SCHEDULE = DDPM(num_steps=1000, schedule="linear", beta_min=1e-4, beta_max=0.02)


def make_model() -> GivenModel:
    """The model as the audit takes it; a config names this function (configs/audit_own_model.py)."""
    known = jnp.asarray(sources.load("digits", limit=100).image).reshape(100, -1)

    def denoiser(x: Array, t: Array) -> Array:
        """Noise ε[B, H, W, C] for x[B, H, W, C] at t[B] in (0, 1]; t = i/T is step i of T."""
        alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
        flat = x.reshape(len(x), -1)
        gap = flat[:, None] - alpha[:, :, None] * known
        weight = jax.nn.softmax(-jnp.sum(gap**2, axis=2) / (2 * sigma**2))
        return ((flat - alpha * (weight @ known)) / sigma).reshape(x.shape)

    score = from_denoiser(denoiser, SCHEDULE, "eps")  # or "x0", "v", "score"
    return GivenModel(score, Chain(SCHEDULE, steps=50, clip_x0=True))  # the sampler as you run it


def main() -> OwnAudit:
    digits = sources.load("digits").image
    private = digits[[3, 500]]  # the first is among the 100, the second is not
    held_out = digits[1000:1060]  # the model never saw these
    plan = Plan(samples=1024, h_levels=8, h_draws=16)
    found = audit_model(make_model(), private, held_out, n_train=100, plan=plan)
    for name, record in zip(("memorised", "unknown"), found.records, strict=True):
        q, e2 = record.verdict, record.subspace.estimate
        print(f"{name} record: {q.status}; {100 * q.level:.0f} % limits of q: {q.lower:.4f} … {q.upper:.4f}")
        e1, p = record.direct, record.control.p_value
        print(f"  E1: {e1.hits} of {e1.estimate.n} images inside its ball, rank test p = {p:.3f}")
        print(f"  E2: {e2.value:.2g} from {e2.network_calls} network calls, reliable: {e2.reliable}")
        print(f"  h(t) at t = {np.round(record.curve.times, 2)}: {record.curve.hits / record.curve.draws}")
        print(f"  t' = {record.t_prime.value}, censored: {record.t_prime.censored}; {'; '.join(record.reasons)}")
    return found


if __name__ == "__main__":
    main()
