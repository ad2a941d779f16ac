"""A sampler as a function of its Gaussian noise: x_0 = F(u), u ~ N(0, I).

Splitting walks in u, so that it needs no density of anything and no assumption on where a record comes from. Functions
here are frozen and hashable: they are compiled in, and carry no parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from diffusion_privacy.diffusion.chain import Chain, take
from diffusion_privacy.diffusion.samplers import SAMPLERS, Sampler, network_calls
from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import SDE, Array, ScoreFn


class NoisePath(Protocol):
    """What splitting asks of a sampler; hashable."""

    @property
    def noises(self) -> int:
        """K, the number of noise images that one image is made of."""
        ...

    @property
    def network_calls(self) -> int:
        """Score evaluations an image."""
        ...

    def __call__(self, score_fn: ScoreFn, noise: Array) -> Array:
        """Images ``[B, ...]`` from standard normal ``noise[B, K, ...]``."""
        ...


@dataclasses.dataclass(frozen=True)
class ChainPath:
    """The stochastic sampler of `diffusion.chain`: the prior's noise, then one of each step but the last."""

    chain: Chain

    @property
    def noises(self) -> int:
        return self.chain.steps

    @property
    def network_calls(self) -> int:
        return self.chain.steps

    def __call__(self, score_fn: ScoreFn, noise: Array) -> Array:
        chain = self.chain
        steps = chain.steps

        def body(i: Array, x: Array) -> Array:
            level = jnp.full((x.shape[0],), steps - i)
            # The last step adds nothing: its std is 0, whichever noise is looked up.
            z = noise[:, jnp.minimum(i + 1, steps - 1)]
            return chain.model_mean(score_fn, x, level) + expand(take(chain.kernel_std, level), x) * z

        return jax.lax.fori_loop(0, steps, body, chain.sde.prior_std * noise[:, 0])


@dataclasses.dataclass(frozen=True)
class SamplerPath:
    """A deterministic sampler of `diffusion.samplers`: the prior's noise is all there is.

    Raises:
      InputError: a sampler that draws noise on its way, or whose cost depends on the image.
    """

    sde: SDE
    sampler: Sampler

    def __post_init__(self) -> None:
        deterministic = self.sampler.name == "ode_heun" or (self.sampler.name == "ddim" and self.sampler.eta == 0)
        if not deterministic:
            raise InputError(f"sampler.name: expected 'ddim' with eta 0 or 'ode_heun', got {self.sampler.name!r}")

    @property
    def noises(self) -> int:
        return 1

    @property
    def network_calls(self) -> int:
        calls = network_calls(self.sampler)
        assert calls is not None
        return calls

    def __call__(self, score_fn: ScoreFn, noise: Array) -> Array:
        unused = jax.random.split(jax.random.key(0), noise.shape[0])
        x = self.sde.prior_std * noise[:, 0]
        return SAMPLERS[self.sampler.name](score_fn, self.sde, self.sampler, unused, x)[0]
