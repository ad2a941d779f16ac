"""Settings of latent diffusion: the autoencoder of a score model."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffusion_privacy.errors import InputError
from diffusion_privacy.training.state import TrainConfig


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """The autoencoder in whose latents a score model works (`diffusion.latent`).

    Every model of a study trains one of its own on its own records, and is audited together with it.

    Attributes:
      training: of the autoencoder.
      network: fields of `networks.autoencoder.Autoencoder` but ``image_channels``.
      std: standard deviation of the decoder, > 0, in units of pixels in [-1, 1]; a smaller one keeps more of the image.
      kl_weight: of the divergence from the prior, 0 or more; 1 for the evidence lower bound.
    """

    training: TrainConfig
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    std: float = 0.1
    kl_weight: float = 1.0

    def __post_init__(self) -> None:
        where = "config.score.autoencoder"
        if not 0 < self.std < float("inf"):
            raise InputError(f"{where}.std: expected a number above 0, got {self.std}")
        if not 0 <= self.kl_weight < float("inf"):
            raise InputError(f"{where}.kl_weight: expected 0 or more, got {self.kl_weight}")
        if self.training.privacy.on:
            raise InputError(f"{where}.training.privacy: expected none, an autoencoder has no DP-SGD")
        if "image_channels" in self.network:
            raise InputError(f"{where}.network.image_channels: expected none, the records say how many they have")


def check_study(private: bool, clip_x0: bool, likelihood_records: int, estimators: tuple[str, ...]) -> None:
    """Refuses what has no meaning in latent space.

    Args:
      private: the score model is trained with DP-SGD.
      clip_x0, likelihood_records, estimators: of the sampler and the audit.

    Raises:
      InputError: one of them is asked for.
    """
    if private:
        raise InputError(
            "config.score.training.privacy: expected none with score.autoencoder, which learns from the same records "
            "without noise: the ε would not be that of the model"
        )
    if clip_x0:
        raise InputError("config.sampler.clip_x0: expected False with score.autoencoder, latents have no range")
    if likelihood_records:
        raise InputError(
            "config.audit.likelihood_records: expected 0 with score.autoencoder, a density of latents gives no bits "
            "per pixel"
        )
    if "counterfactual" in estimators:
        raise InputError(
            "config.audit.estimators: expected no 'counterfactual' with score.autoencoder, a model and its twin have "
            "latents of their own and share no noise"
        )
