"""Records, a flow that is its own inverse, and a release of them."""

from __future__ import annotations

import numpy as np

from diffusion_privacy.mechanisms.condition import PublicCondition
from diffusion_privacy.mechanisms.manifest import FlowProvenance
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD
from diffusion_privacy.mechanisms.release import privatise

PUBLIC = FlowProvenance("public", frozenset())
SHAPE = (4, 4, 1)


def encode(x, c):
    return x.reshape(x.shape[0], -1) + c[:, None]


def decode(z, c):
    return (z - c[:, None]).reshape(z.shape[0], *SHAPE)


def records(n=10):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (n, *SHAPE)).astype(np.float32), (np.arange(n) % 3).astype(np.int32)


def gaussian(epsilon=1.0, relation=REPLACE_RECORD):
    return GaussianMechanism.calibrated(epsilon, 1e-5, 2.0, relation, 100)


def go(images, labels, **changes):
    settings = {
        "mechanism": gaussian(),
        "condition": PublicCondition(3),
        "relation": REPLACE_RECORD,
        "delta": 1e-5,
        "flow": PUBLIC,
        "batch_size": 4,
    } | changes
    return privatise(encode, decode, images, labels, **settings)


def run(n=10, **changes):
    return go(*records(n), **changes)
