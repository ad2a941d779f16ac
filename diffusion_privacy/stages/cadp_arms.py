"""Training sets side by side: the arms of the utility study, their batches and their scores."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.data.pipeline import Batches
from diffusion_privacy.data.records import Records
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import dp_gradient, pixelise
from diffusion_privacy.networks.dense_classifier import DenseClassifier
from diffusion_privacy.settings_cadp import Cadp
from diffusion_privacy.tasks import ArmsTask
from diffusion_privacy.training import rng
from diffusion_privacy.types import Array, PyTree

_SEED_STEP = 7919


@dataclasses.dataclass(frozen=True)
class Arm:
    """A training set for classifiers.

    Attributes:
      name: unique.
      kind: what the set is made of: ``original``, ``public``, ``released``, ``study``, ``control``, ``pixels``.
      epsilon: ε of the set as a whole, for releases `cadp_study.Released.spent`; None where none of the private records
        is in it, or no noise.
      sets: the set, or one draw of it for each seed, so that the interval over seeds covers the draw.
      private_test: test records that went through the same mechanism, for the arm p/p, under a condition that says
        nothing of them; None without.
    """

    name: str
    kind: str
    epsilon: float | None
    sets: tuple[Records, ...]
    private_test: Records | None = None

    @property
    def records(self) -> Records:
        """The set, or the first draw of it."""
        return self.sets[0]


def with_guessed_condition(test: Records, public: Records, by: str, key: Array) -> Records:
    """The test records with conditions of public records drawn at random, ``"label"`` or ``"attributes"``.

    Whoever is to classify a record does not know its class. Made private under its true one it would be decoded as that
    class, and classifiers would read off what they were given: at ε = 0.5 more than nine in ten digits, where the
    latent says nothing of them.
    """
    drawn = public.take(np.asarray(jax.random.randint(key, (len(test),), 0, len(public))))
    if by == "attributes":
        return dataclasses.replace(test, attributes=drawn.attributes)
    return dataclasses.replace(test, label=drawn.label)


class ArmBatches:
    """Row b of a batch holds one record for each (arm, seed), each from a stream of its own; see `loop.BatchSource`."""

    def __init__(self, arms: Sequence[Arm], batch_size: int, seed: int, seeds: int) -> None:
        self.batch_size = batch_size
        numbers = [(seed + _SEED_STEP * (s + 1)) % 2**32 for s in range(seeds)]
        self._streams = [
            [Batches(arm.sets[s % len(arm.sets)], batch_size, n) for s, n in enumerate(numbers)] for arm in arms
        ]
        digests = "".join(arm.name + "".join(one.digest for one in arm.sets) for arm in arms)
        self._fixed = {
            "arms": hashlib.sha256(digests.encode()).hexdigest(),
            "seed": seed,
            "seeds": seeds,
            "batch_size": batch_size,
        }

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """``image[B, A, S, ...]``, ``label[B, A, S]``, ``position[B]``."""
        rows = [[stream.batch(step) for stream in streams] for streams in self._streams]
        stacked = {
            name: np.stack([np.stack([row[name] for row in of_arm], axis=1) for of_arm in rows], axis=1)
            for name in ("image", "label")
        }
        return {**stacked, "position": np.arange(self.batch_size, dtype=np.int32)}

    def state(self, step: int) -> dict[str, Any]:
        """The next step and what the stream is of."""
        return {"step": int(step), **self._fixed}

    def check(self, state: Mapping[str, Any]) -> int:
        """The step of a saved state; InputError where it is of other arms."""
        for name, value in self._fixed.items():
            if state.get(name) != value:
                raise InputError(f"classifiers' data: {name} was {state.get(name)!r}, is {value!r}; expected the same")
        return int(state["step"])


def make_task(settings: Cadp, arms: int, classes: int) -> ArmsTask:
    """All classifiers of the study as one task."""
    return ArmsTask(DenseClassifier(classes, settings.evaluation.hidden), arms, settings.evaluation.seeds)


@functools.partial(jax.jit, static_argnums=0)
def _predict(task: ArmsTask, params: PyTree, image: Array) -> Array:
    spread = jnp.broadcast_to(image[:, :, None], (*image.shape[:2], task.seeds, *image.shape[2:]))
    return jnp.argmax(task.logits(params, spread), axis=-1)


def accuracies(task: ArmsTask, params: PyTree, tests: Sequence[Records]) -> np.ndarray:
    """Share of right answers ``[A, S]``, each arm on its own test set, all of one size."""
    images = np.stack([t.image for t in tests], axis=1)
    labels = np.stack([t.label for t in tests], axis=1)
    parts = [np.asarray(_predict(task, params, jnp.asarray(images[i : i + 256]))) for i in range(0, len(images), 256)]
    return np.mean(np.concatenate(parts) == labels[:, :, None], axis=0)


def features(task: ArmsTask, params: PyTree, image: np.ndarray) -> np.ndarray:
    """Last hidden layer of the first arm's first classifier, ``[N, hidden]``: the space in which sets are compared."""
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[0, 0]), params)
    return np.asarray(task.network.apply(first, jnp.asarray(image), method="features"))


def pixelised(settings: Cadp, private: Records, epsilon: float, draw: int) -> Records:
    """The private records by DP-Pix; drawn from the run's seed, since this set is never published."""
    key = rng.stream(settings.seed, "pixelise", int(1000 * epsilon), draw)
    keys = jax.random.split(key, len(private))
    block = settings.evaluation.pixel_block
    return private.with_images(np.asarray(pixelise.pixelise(jnp.asarray(private.image), block, epsilon, keys)))


def dp_gradient_accuracies(settings: Cadp, private: Records, test: Records, epsilons: Sequence[float]) -> np.ndarray:
    """Test accuracies ``[E, S]`` of classifiers trained on the originals by private gradient descent at each ε."""
    options, network = settings.evaluation, DenseClassifier(private.num_classes, settings.evaluation.dp_hidden)
    scale = [dp_gradient.noise_multiplier(e, settings.release.delta, options.dp_steps, len(private)) for e in epsilons]

    def loss(params: PyTree, x: Array, y: Array) -> Array:
        return -jax.nn.log_softmax(jnp.asarray(network.apply(params, x[None])))[0, y]

    def run(key: Array, multiplier: Array) -> Array:
        init, noise = jax.random.split(key)
        start = network.init(init, jnp.asarray(private.image[:1]))
        params = dp_gradient.descend(
            loss, start, jnp.asarray(private.image), jnp.asarray(private.label), noise, multiplier,
            clip=options.dp_clip, steps=options.dp_steps, learning_rate=options.dp_learning_rate,
        )  # fmt: skip
        return jnp.argmax(jnp.asarray(network.apply(params, jnp.asarray(test.image))), axis=-1)

    keys = jax.random.split(rng.stream(settings.seed, "dp_gradient"), options.seeds)
    over_seeds = jax.vmap(run, in_axes=(0, None))
    answers = jax.jit(lambda m: jax.lax.map(lambda one: over_seeds(keys, one), m))(jnp.asarray(scale))
    return np.mean(np.asarray(answers) == test.label, axis=-1)
