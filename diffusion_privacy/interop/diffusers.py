"""A diffusers checkpoint directory as a model to audit."""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp

from diffusion_privacy.diffusion import objective
from diffusion_privacy.diffusion.given_model import GivenModel
from diffusion_privacy.errors import InputError
from diffusion_privacy.interop import diffusers_schedule, diffusers_unet
from diffusion_privacy.interop.diffusers_schedule import Schedule
from diffusion_privacy.interop.diffusers_unet import UNet2D
from diffusion_privacy.interop.files import read_json
from diffusion_privacy.interop.unet2d_config import UNet2DConfig

_SCHEDULER = "scheduler_config.json"


def load(
    path: str | os.PathLike[str], steps: int, *, shape: tuple[int, ...] | None = None, label: int | None = None
) -> GivenModel:
    """Reads a pipeline directory (``unet/``, ``scheduler/``) or one that holds all three files itself.

    Args:
      path: the directory, with config.json and diffusion_pytorch_model.safetensors of a `UNet2DModel` and
        scheduler_config.json of a `DDPMScheduler` or `DDIMScheduler`.
      steps: network calls of one sample, what diffusers calls num_inference_steps.
      shape: (H, W, C) of the records, to be checked against the checkpoint; None for what it was trained on.
      label: class to audit, for a model with num_class_embeds.

    Raises:
      InputError: a file, a setting or a weight that is missing, damaged or not supported, or a scheduler that does not
        belong to the network. One line names the file and the key.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"model.path: expected a diffusers checkpoint directory, {folder} is not one")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    config, params = diffusers_unet.read(unet)
    scheduler = _scheduler_file(folder)
    schedule = diffusers_schedule.parse(read_json(scheduler), str(scheduler))
    _check_together(config, schedule, str(unet / "config.json"), str(scheduler))
    _check_records(config, shape, label, str(unet / "config.json"))
    network = UNet2D(config, schedule.num_train_timesteps)
    rows = None if label is None else jnp.asarray(label, jnp.int32)
    score = objective.score_fn(network, params, schedule.sde, schedule.prediction, rows)
    notes = schedule.notes()
    if label is not None:
        notes = (
            *notes,
            f"only images of class {label} were drawn: what the model shows of other classes was not looked at",
        )
    return GivenModel(score, schedule.chain(steps), notes)


def _scheduler_file(folder: Path) -> Path:
    for place in (folder / "scheduler", folder, folder.parent / "scheduler"):
        if (place / _SCHEDULER).is_file():
            return place / _SCHEDULER
    raise InputError(f"{folder}: expected {_SCHEDULER} here or in scheduler/, found none: its schedule is not known")


def _check_together(config: UNet2DConfig, schedule: Schedule, unet: str, scheduler: str) -> None:
    trained = config.num_train_timesteps
    if trained is not None and trained != schedule.num_train_timesteps:
        raise InputError(
            f"{scheduler}: num_train_timesteps is {schedule.num_train_timesteps}; expected {trained}, as {unet} has it"
        )


def _check_records(config: UNet2DConfig, shape: tuple[int, ...] | None, label: int | None, where: str) -> None:
    if shape is not None:
        if len(shape) != 3 or shape[2] != config.in_channels:
            raise InputError(
                f"records: expected {config.in_channels} channels (in_channels in {where}), got shape {shape}"
            )
        if config.size is not None and tuple(shape[:2]) != config.size:
            raise InputError(f"records: expected {config.size} pixels (sample_size in {where}), got shape {shape}")
    classes = config.num_class_embeds
    if classes is None and label is not None:
        raise InputError(f"model.label: expected none, {where} has no num_class_embeds")
    if classes is not None and (label is None or not 0 <= label < classes):
        raise InputError(f"model.label: expected one of 0 … {classes - 1} (num_class_embeds in {where}), got {label}")
