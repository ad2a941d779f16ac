"""How good is the flow of a CADP study of images: likelihood of fresh test images, and do its draws show their class?

    python launch.py --config=configs/mnist_cadp.py --workdir=runs/mnist_cadp --mode=train
    python -m benchmarks.image_flow --workdir runs/mnist_cadp --images DIR/t10k-images-idx3-ubyte.gz \
        --labels DIR/t10k-labels-idx1-ubyte.gz

Bits per dimension with uniform dequantisation, normal 95 % interval over images, from one draw of its noise an image as
is usual; with ``--noises K`` also from the mean of the density over K draws (Burda et al., arXiv 1509.00519), which
bounds the code length from above too, and closer, on the first thousand test images. A draw agrees with its class when
a convolutional classifier of real images says so; the classifier is trained here, on the shares of the study that the
flow never saw, and is scored on the same test images. Draws are at temperature 1, the flow itself; ``--temperature``
adds others, marked as such. Exact 95 % intervals. ``draws.png`` in the workdir shows the first ten of every class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy import settings_kinds
from diffusion_privacy.anonymity.intervals import clopper_pearson
from diffusion_privacy.data import sources
from diffusion_privacy.data.pipeline import Batches
from diffusion_privacy.data.records import Records
from diffusion_privacy.flows.objective import bits_per_dim
from diffusion_privacy.networks.classifier import Classifier
from diffusion_privacy.settings_cadp import Cadp
from diffusion_privacy.stages import cadp_study
from diffusion_privacy.stages.cadp_flow import TrainedFlow
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import ClassifierTask, Classify
from diffusion_privacy.training import rng
from diffusion_privacy.training.loop import train as run_loop
from diffusion_privacy.training.state import TrainConfig
from diffusion_privacy.types import Array

CLASSIFIER = TrainConfig(
    steps=500,
    batch_size=128,
    learning_rate=2e-3,
    warmup_steps=20,
    schedule="cosine",
    weight_decay=1e-3,
    ema_decay=0.98,
    checkpoint_every=100,
    tensorboard=False,
)
_CHUNK = 500


def unseen(parts: cadp_study.Parts[Records]) -> Records:
    """The private and test shares as one set."""
    both, first = [parts.private, parts.test], parts.private
    joined = {f: np.concatenate([getattr(r, f) for r in both]) for f in ("image", "label", "identity", "index")}
    return Records(**joined, num_classes=first.num_classes, name=f"{first.name}, unseen", levels=first.levels)


def answers(classify: Classify, params: Any, images: np.ndarray) -> np.ndarray:
    """Classes that the classifier sees in ``images[N, H, W, C]``, int ``[N]``."""
    label = jax.jit(lambda p, x: jnp.argmax(classify(p, x), axis=-1))
    return np.concatenate([np.asarray(label(params, images[i : i + _CHUNK])) for i in range(0, len(images), _CHUNK)])


def bits(flow: TrainedFlow, records: Records, key: Array, noises: int = 1) -> dict[str, Any]:
    """Bits per dimension of ``records``, from log mean p(v + U_k) over ``noises`` draws of U."""
    passes = [flow.encode(records.image, records.label, jax.random.fold_in(key, k))[1] for k in range(noises)]
    logp = np.logaddexp.reduce(np.asarray(passes, np.float64), axis=0) - np.log(noises)
    found = np.asarray(bits_per_dim(jnp.asarray(logp), flow.model.dims))
    half = 1.96 * found.std(ddof=1) / np.sqrt(len(found))
    return {"bits_per_dim": float(found.mean()), "half_width": float(half), "n": len(found), "noises": noises}


def share(right: np.ndarray) -> dict[str, Any]:
    """Of true values, with its exact 95 % interval."""
    hits, n = int(right.sum()), right.size
    lower, upper = clopper_pearson(hits, n)
    return {"value": hits / n, "lower": lower, "upper": upper, "n": n}


def draw(flow: TrainedFlow, labels: np.ndarray, temperature: float) -> np.ndarray:
    """Images of these classes; latents are N(0, temperature² I), which is the flow itself at 1."""
    z = temperature * jax.random.normal(jax.random.key(7), (len(labels), flow.model.dims))
    return flow.decode(np.asarray(z), labels)


def picture(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """The first ten images of every class, a row a class."""
    from PIL import Image

    rows = [np.concatenate(list(images[labels == c][:10, :, :, 0]), axis=1) for c in np.unique(labels)]
    grey = np.rint((np.concatenate(rows) + 1) * 127.5).astype(np.uint8)
    Image.fromarray(grey).resize((2 * grey.shape[1], 2 * grey.shape[0]), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a run of an image study whose flow is trained")
    parser.add_argument("--images", required=True, help="IDX file of test images")
    parser.add_argument("--labels", required=True, help="IDX file of their classes")
    parser.add_argument("--draws", type=int, default=200, help="draws of each class")
    parser.add_argument("--temperature", type=float, nargs="*", default=[], help="further temperatures of the latents")
    parser.add_argument("--noises", type=int, default=1, help="draws of the noise an image, for the closer bound")
    asked = parser.parse_args()
    root = asked.workdir.absolute()
    study = settings_kinds.parse(json.loads((root / "config.json").read_text()))
    if not isinstance(study, Cadp):
        parser.error(f"--workdir: expected a study of images (kind 'cadp'), got {study.kind!r}")
    workdir = Workdir(root, study)
    parts = cadp_study.load_parts(study, workdir)
    test = sources.load("idx", images=asked.images, labels=asked.labels)
    flow = cadp_study.load_flow(study, workdir, parts.private)

    result: dict[str, Any] = {"parameters": sum(p.size for p in jax.tree.leaves(flow.params))}
    trained, key = parts.public.take(np.arange(5000)), rng.stream(study.seed, "benchmark", len(test))
    few = test.take(np.arange(min(1000, len(test))))
    asked_for = [("test images", test, 1), ("trained on", trained, 1)]
    if asked.noises > 1:
        asked_for += [("first test images", few, 1), (f"first test images, {asked.noises} noises", few, asked.noises)]
    for name, records, noises in asked_for:
        result[name] = bits(flow, records, key, noises)
        print(f"{name}: {result[name]}", flush=True)

    task, real = ClassifierTask(Classify(Classifier(10, 8, 32))), unseen(parts)
    folder = root / "benchmark" / "classifier"
    state = run_loop(task, Batches(real, 128, 0), CLASSIFIER, workdir=folder, seed=0, name="classifier of real images")
    params = jax.tree.map(jnp.asarray, state.ema_params)
    result["classifier"] = share(answers(task.classify, params, test.image) == test.label)
    print(f"classifier on test images: {result['classifier']}", flush=True)
    labels = np.repeat(np.arange(10), asked.draws)
    for temperature in (1.0, *asked.temperature):
        images = draw(flow, labels, temperature)
        right = answers(task.classify, params, images) == labels
        by_class = [int(right[labels == c].sum()) for c in range(10)]
        result[f"agreement, temperature {temperature:g}"] = {**share(right), "by_class": by_class}
        print(f"temperature {temperature:g}: {share(right)}; of {asked.draws} a class: {by_class}", flush=True)
        picture(root / ("draws.png" if temperature == 1 else f"draws_{temperature:g}.png"), images, labels)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
