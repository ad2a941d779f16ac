"""The arm of private training by the common loop: one DP-SGD run for each ε and seed, on the original records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy import settings as settings_module
from diffusion_privacy.data.pipeline import Batches
from diffusion_privacy.data.records import Records
from diffusion_privacy.networks.dense_classifier import DenseClassifier
from diffusion_privacy.settings_cadp import Cadp
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import ClassifierTask, Classify
from diffusion_privacy.training.loop import train as run_loop
from diffusion_privacy.training.state import TrainConfig


def private_config(base: TrainConfig, epsilon: float, delta: float, records: int) -> TrainConfig:
    """``base`` at (epsilon, delta) for replacing one of ``records`` records; its batches are never larger than that."""
    privacy = dataclasses.replace(base.privacy, epsilon=epsilon, delta=delta, relation="replace-one")
    return dataclasses.replace(base, batch_size=min(base.batch_size, records), privacy=privacy)


def accuracies(
    settings: Cadp, workdir: Workdir, private: Records, test: Records, epsilons: Sequence[float], base: TrainConfig
) -> np.ndarray:
    """Test accuracies ``[E, S]``. Nothing of these runs is given away, so that none of them enters the ledger."""
    options = settings.evaluation
    network = Classify(DenseClassifier(private.num_classes, options.dp_hidden))
    found = np.zeros((len(epsilons), options.seeds))
    for row, epsilon in enumerate(epsilons):
        config = private_config(base, epsilon, settings.release.delta, len(private))
        for seed in range(options.seeds):
            number = (settings.seed + seed) % 2**32
            state = run_loop(
                ClassifierTask(network),
                Batches(private, config.batch_size, number),
                config,
                workdir=workdir.path("train", "private_classifiers", f"eps_{epsilon:g}_seed_{seed}"),
                seed=number,
                name=f"private classifier {epsilon:g}, {seed}",
                identity={"config": settings_module.digest(settings_module.to_dict(options))},
            )
            params = jax.tree.map(jnp.asarray, state.ema_params)
            answers = np.argmax(np.asarray(network(params, jnp.asarray(test.image))), axis=-1)
            found[row, seed] = np.mean(answers == test.label)
    return found
