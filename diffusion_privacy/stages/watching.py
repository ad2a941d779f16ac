"""Training as the stages start it: with what a config wants to see of it while it goes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.data import pictures
from diffusion_privacy.data.latents import LatentRecords
from diffusion_privacy.data.pipeline import eval_batches
from diffusion_privacy.data.records import Records
from diffusion_privacy.settings import Outputs
from diffusion_privacy.training import loop, rng, sharding, tracking
from diffusion_privacy.training.state import TrainConfig, TrainState
from diffusion_privacy.training.steps import BatchSource
from diffusion_privacy.types import PyTree, Task

_LOG = logging.getLogger(__name__)
HELD_OUT = 256
"""Most held-out records whose loss is computed beside a picture."""

Draw = Callable[[PyTree, int], np.ndarray]
"""(averaged parameters, count) -> images float [count, H, W, C] in [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """What to see of a training run.

    Attributes:
      outputs, profile: as in the settings.
      held_out: records whose loss is logged as ``eval/loss`` beside every picture; None for no pictures.
      draw: draws the picture; None for no pictures.
    """

    outputs: Outputs
    profile: int = 0
    held_out: Records | LatentRecords | None = None
    draw: Draw | None = None


def train(
    task: Task,
    batches: BatchSource,
    config: TrainConfig,
    watch: Watch,
    *,
    workdir: Path,
    seed: int,
    name: str,
    identity: Mapping[str, object],
    pay: loop.Pay | None = None,
) -> TrainState:
    """`training.loop.train`, watched. None of it changes what is learned.

    Raises:
      InputError: as there; Weights & Biases is asked for and not there.
    """
    pictured = watch.outputs.grid_every > 0 and watch.draw is not None and watch.held_out is not None
    if pictured:
        config = dataclasses.replace(config, eval_every=watch.outputs.grid_every)
    with tracking.rows(watch.outputs.wandb, workdir, name, dataclasses.asdict(config)) as on_log:
        return loop.train(
            task,
            batches,
            config,
            workdir=workdir,
            seed=seed,
            name=name,
            identity=identity,
            on_log=on_log,
            eval_fn=_picture(task, config, watch, workdir, seed, name) if pictured else None,
            profile=watch.profile,
            pay=pay,
        )


def _picture(
    task: Task, config: TrainConfig, watch: Watch, workdir: Path, seed: int, name: str
) -> Callable[[TrainState], dict[str, float | np.ndarray]]:
    """Draws ``grids/STEP.png`` from the averaged parameters; returns it as ``samples``, and the held-out ``loss``."""
    draw, held_out = watch.draw, watch.held_out
    assert draw is not None
    assert held_out is not None
    records = held_out.take(np.arange(min(len(held_out), HELD_OUT)))
    key, evaluate = rng.stream(seed, f"{name}.held_out"), jax.jit(task.evaluate)

    def see(state: TrainState) -> dict[str, float | np.ndarray]:
        params = sharding.to_host(state.ema_params)
        total = 0.0
        for batch in eval_batches(records, config.batch_size):
            mask = batch.pop("mask")
            total += float(jnp.sum(evaluate(params, batch, key)["loss"] * mask))
        try:
            sheet = pictures.grid(draw(params, watch.outputs.grid_images))
        except FloatingPointError as error:
            # A model that draws infinities early may still learn; the loop itself stops when its loss is not finite.
            _LOG.warning("%s: no picture at step %d, %s", name, int(state.step), error)
            return {"loss": total / len(records)}
        if jax.process_index() == 0:
            folder = workdir / "grids"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{int(state.step):08d}.png").write_bytes(pictures.png(sheet))
        return {"loss": total / len(records), "samples": sheet}

    return see
