"""diffusers' DDPM scheduler as this program's forward process and reverse chain.

Step i of T here (t = i/T) is timestep i − 1 there. The chain visits the timesteps that `set_timesteps` would give,
clips the estimate of x_0 as `step` does, and has its variance. diffusers computes in float32, this chain in float64 on
the host: coefficients of the first steps differ by up to a thousandth, which is diffusers' own rounding of 1 − ᾱ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import DDPM
from diffusion_privacy.errors import InputError

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
VARIANCES = {"fixed_small": "posterior", "fixed_small_log": "posterior", "fixed_large": "forward"}
TIMESTEPS = ("leading", "trailing", "linspace")

_UNUSED = ("dynamic_thresholding_ratio", "sample_max_value")
"""Read only together with a setting that is refused."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Fields and defaults of diffusers' `DDPMScheduler` and `DDIMScheduler`, as far as the chain needs them.

    Raises:
      InputError: a value that the chain does not have; the message names the key.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: None = None
    variance_type: str = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    prediction_type: str = "epsilon"
    thresholding: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True
    deterministic: bool = False

    def __post_init__(self) -> None:
        whole = isinstance(self.num_train_timesteps, int) and self.num_train_timesteps >= 2
        for key, valid, expected in (
            ("num_train_timesteps", whole, "a whole number of 2 or more"),
            ("beta_schedule", self.beta_schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("beta_start", 0 < self.beta_start < 1, "a number in (0, 1)"),
            ("beta_end", 0 < self.beta_end < 1, "a number in (0, 1)"),
            ("trained_betas", self.trained_betas is None, "null"),
            ("variance_type", self.variance_type in VARIANCES, f"one of {', '.join(VARIANCES)}"),
            ("clip_sample", isinstance(self.clip_sample, bool), "true or false"),
            ("clip_sample_range", self.clip_sample_range > 0, "a positive number"),
            ("prediction_type", self.prediction_type in PREDICTIONS, f"one of {', '.join(PREDICTIONS)}"),
            ("thresholding", self.thresholding is False, "false"),
            ("timestep_spacing", self.timestep_spacing in TIMESTEPS, f"one of {', '.join(TIMESTEPS)}"),
            ("steps_offset", isinstance(self.steps_offset, int) and self.steps_offset >= 0, "0 or more"),
            ("rescale_betas_zero_snr", self.rescale_betas_zero_snr is False, "false"),
        ):
            if not valid:
                raise InputError(f"{key}: expected {expected}, got {vars(self)[key]!r}")

    @property
    def sde(self) -> DDPM:
        """The forward process."""
        return DDPM(self.num_train_timesteps, SCHEDULES[self.beta_schedule], self.beta_start, self.beta_end)

    @property
    def prediction(self) -> str:
        """What the network predicts, by this program's name."""
        return PREDICTIONS[self.prediction_type]

    def timesteps(self, steps: int) -> np.ndarray:
        """The timesteps of `set_timesteps(steps)`, ascending, int ``[steps]`` in 0 … T − 1.

        Raises:
          InputError: fewer than 2 steps, more than there are, or an offset that leads beyond the last.
        """
        total = self.num_train_timesteps
        if not 2 <= steps <= total:
            raise InputError(f"sampler.steps: expected 2 … num_train_timesteps = {total}, got {steps}")
        if self.timestep_spacing == "linspace":
            found = np.round(np.linspace(0, total - 1, steps)).astype(int)
        elif self.timestep_spacing == "leading":
            found = np.arange(steps) * (total // steps) + self.steps_offset
        else:
            found = np.sort(np.round(np.arange(total, 0, -total / steps)).astype(int) - 1)[-steps:]
        if found[-1] >= total:
            raise InputError(
                f"steps_offset: expected {steps} steps to end below num_train_timesteps = {total}, the last is "
                f"{found[-1]}"
            )
        return found

    def chain(self, steps: int) -> Chain:
        """The reverse chain of ``steps`` network calls.

        Raises:
          InputError: as in `timesteps`; or a last step that adds noise to the image, which no chain here does.
        """
        found = self.timesteps(steps)
        if found[0] > 0 and self.variance_type == "fixed_large":
            raise InputError(
                f"variance_type: expected 'fixed_small' for {steps} {self.timestep_spacing} steps: with 'fixed_large' "
                f"the last of them (timestep {found[0]}) adds noise to the image"
            )
        return Chain(
            self.sde,
            steps,
            clip_x0=self.clip_sample,
            clip_range=float(self.clip_sample_range),
            variance=VARIANCES[self.variance_type],
            visits=tuple(int(i) + 1 for i in found),
        )

    def notes(self) -> tuple[str, ...]:
        """What a reader should know when the scheduler is not the sampler that is audited."""
        if not self.deterministic:
            return ()
        named = (
            "the checkpoint names DDIMScheduler: audited is its stochastic member, eta = 1, on the same timesteps; "
            "with eta = 0 the rate may be another",
        )
        if self.set_alpha_to_one:
            return named
        return (*named, "set_alpha_to_one is false there: its last step stops at timestep 0, the audited one at t = 0")


def parse(fields: Mapping[str, Any], where: str) -> Schedule:
    """A `Schedule` from a scheduler_config.json's fields; ``where`` names the file in messages.

    Raises:
      InputError: another class of scheduler, a key that is not known, or a value that is not supported.
    """
    kind = fields.get("_class_name", "DDPMScheduler")
    if kind not in SCHEDULERS:
        raise InputError(f"{where}: _class_name is {kind!r}; expected one of {', '.join(SCHEDULERS)}")
    known = {field.name for field in dataclasses.fields(Schedule)} - {"deterministic"}
    given = {name: v for name, v in fields.items() if not name.startswith("_") and name not in _UNUSED}
    for name in given:
        if name not in known:
            raise InputError(f"{where}: {name} is not supported; expected fields of {kind}: {', '.join(sorted(known))}")
    try:
        return Schedule(**given, deterministic=kind == "DDIMScheduler")
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except TypeError as error:
        raise InputError(f"{where}: expected the fields of a {kind} ({error})") from error
