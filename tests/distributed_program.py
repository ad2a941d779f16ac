"""What the tests of devices and processes run: a little training, whole, split and private, and a little auditing.

    python distributed_program.py FOLDER COORDINATOR PROCESSES PROCESS KILL

joins a job, runs `everything` over its devices, and on the first process writes FOLDER/numbers.npz. With KILL = 1 the
last process kills itself in the middle of training; the others end as launch.py does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity import montecarlo, screening, subspace, tprime
from diffusion_privacy.data import pipeline, sources
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.training import loop, rng, secret, sharding
from diffusion_privacy.training.privacy import Privacy
from diffusion_privacy.training.state import TrainConfig

SPLIT = ("hidden/kernel: -1", "kernel: 0", "hidden: whole")
STEPS, EVERY, DEADLY = 9, 3, 7


@dataclasses.dataclass(frozen=True)
class DigitTask:
    """Two layers that read a digit from its noised image; noise by position, as in every task."""

    width: int = 64

    def init(self, key: Any, batch: Any) -> Any:
        a, b = jax.random.split(key)
        return {
            "hidden": {"kernel": jax.random.normal(a, (64, self.width)) / 8, "bias": jnp.zeros(self.width)},
            "out": {"kernel": jax.random.normal(b, (self.width, 10)) / 8, "bias": jnp.zeros(10)},
        }

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        keys = rng.per_record(key, batch["position"])
        noise = jax.vmap(lambda k: jax.random.normal(k, (64,)))(keys)
        x = batch["image"].reshape(-1, 64) + 0.3 * noise
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        logits = jax.nn.log_softmax(hidden @ params["out"]["kernel"] + params["out"]["bias"])
        losses = -jnp.take_along_axis(logits, batch["label"][:, None], axis=1)[:, 0]
        return losses, {"right": (jnp.argmax(logits, axis=1) == batch["label"]).astype(jnp.float32)}

    def evaluate(self, params: Any, batch: Any, key: Any) -> Any:
        return {"loss": self.loss(params, batch, key)[0]}


class Deadly(pipeline.Batches):
    """Kills its process where it asks for a batch too many."""

    def rows(self, step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        if step == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rows(step, rows)


def trained(folder: Path, mesh: Any, *, split: bool = False, kill: bool = False, **changes: Any) -> Any:
    """The state after a few steps on 30 of the digits; 18 rows a batch, which no number of devices here divides."""
    config = TrainConfig(
        steps=STEPS,
        batch_size=18,
        learning_rate=1e-2,
        grad_clip_norm=0.5,
        weight_decay=0.01,
        log_every=3,
        checkpoint_every=EVERY,
        tensorboard=False,
        sharding=SPLIT if split else (),
    )
    config = dataclasses.replace(config, **changes)
    batches = (Deadly if kill else pipeline.Batches)(sources.load("digits").take(np.arange(30)), 18, 5)
    return loop.train(DigitTask(), batches, config, workdir=folder, seed=3, name="digits", mesh=mesh)


def audited(mesh: Any) -> dict[str, np.ndarray]:
    """A model that has five of nine records by heart, under E1, h(t), E2 and the ranking."""
    from oracles import atom_models, part_memoriser

    draw = np.random.default_rng(0)
    records = draw.standard_normal((9, 6)).astype(np.float32)
    chain, score = Chain(VP(), 8), part_memoriser.part_score(VP(), records[:5], share=0.5)
    detect = atom_models.ball(records, 0.6)
    key, where = jax.random.key(7), {"chunk": 16, "mesh": mesh}
    drawn = montecarlo.sample(chain, score, (6,), 101, key, **where)
    levels = np.array([2, 5, 8])
    curves = tprime.h_curves(chain, score, detect, records, levels, 17, key, uids=np.arange(9), **where)
    mixtures = [subspace.design(curve.by_level) for curve in curves]
    found = subspace.estimate(
        chain, score, detect, records, mixtures, key, uids=np.arange(9), draws=100, max_draws=200, **where
    )
    ranked = screening.screen(chain, score, records, key, levels=levels, draws=3, uids=np.arange(9), **where)
    return {
        "drawn": drawn,
        "margins": montecarlo.margins(detect, drawn, 9, **where),
        "h_hits": np.array([curve.hits for curve in curves]),
        "subspace_hits": np.array([e.hits for e in found]),
        "subspace_draws": np.array([e.estimate.n for e in found]),
        "subspace_log": np.array([e.estimate.log_value for e in found]),
        "ranking": ranked.score,
    }


def everything(folder: Path, mesh: Any, kill: bool = False) -> dict[str, np.ndarray]:
    """All numbers, by name."""
    whole = trained(folder / "whole", mesh, kill=kill)
    split = trained(folder / "split", mesh, split=True)
    # One secret for all runs, so that they draw the same records and the same noise; a real one is drawn afresh.
    given = folder / "private" / secret.FILE
    given.parent.mkdir(exist_ok=True)
    sharding.once(lambda: given.write_text(json.dumps({"secret": "ab" * 32})), "secret")
    private = trained(given.parent, mesh, privacy=Privacy(noise_multiplier=1.0, micro_batch=4), steps=3)
    numbers = audited(mesh)
    for name, state in (("whole", whole), ("split", split), ("private", private)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(sharding.to_host(state))[0]:
            numbers[f"{name}{jax.tree_util.keystr(path)}"] = leaf
    return numbers


def main(folder: Path, coordinator: str, processes: int, process: int, kill: bool) -> None:
    if processes > 1:
        sharding._HEARTBEAT_S = 40
        assert sharding.initialise(coordinator, processes, process)
    try:
        numbers = everything(folder, sharding.data_mesh(), kill and process == processes - 1)
        sharding.once(lambda: np.savez(folder / "numbers.npz", **numbers), "numbers")
    except Exception:
        traceback.print_exc()
        sharding.leave(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "1")
