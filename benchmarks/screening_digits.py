"""Screening on a trained model that memorises: does the list begin with the records that E2 finds?

    python launch.py --config=configs/digits.py --workdir=runs/digits
    python -m benchmarks.screening_digits --workdir runs/digits

Ranks all digits under the careless model of the finished study, which was trained on 64 of them; its private record is
left out, since it was trained on with a fingerprint. Then E2 at 95 % for the first 24 of the list and for 24 drawn from
what is below the first 5 %, with the detector "closer than 1.5 to the record" (pixels in [-1, 1]).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from diffusion_privacy import settings
from diffusion_privacy.anonymity import screening, subspace
from diffusion_privacy.data import sources
from diffusion_privacy.settings import Study
from diffusion_privacy.stages import study as common
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.types import Array

LOOKED_AT = 24
PATHS = 200
RADIUS = 1.5


def close(records: Array, x: Array, record: Array) -> Array:
    """Margin of "closer than `RADIUS` to ``records[record]``"."""
    return RADIUS - jnp.sqrt(jnp.sum((x.reshape(x.shape[0], -1) - records[record]) ** 2, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a finished run of configs/digits.py")
    root = parser.parse_args().workdir
    study = settings.parse(Study, json.loads((root / "config.json").read_text()))
    source = sources.load(study.data.source, **study.data.params)
    rows = common.split(study, source)
    asked = np.setdiff1d(np.arange(len(source)), rows["private"])
    images, member = np.asarray(source.image)[asked], np.isin(asked, rows["careless"])
    params, _ = restore_ema(root.absolute() / "train" / "careless")
    score = common.score_task(study).score(params)
    chain = common.make_chain(study, common.make_sde(study))

    found = screening.screen(chain, score, images, jax.random.key(0))
    recall = {share: screening.recall_at(found.score, member, share) for share in (0.01, 0.05)}
    below = found.ranking[int(0.05 * len(images)) + 1 :]
    look = np.concatenate([found.ranking[:LOOKED_AT], np.random.default_rng(0).choice(below, LOOKED_AT, replace=False)])
    detect = Partial(close, jnp.asarray(images[look].reshape(len(look), -1)))
    mixtures = [subspace.design(np.where(np.arange(chain.steps) < 0.4 * chain.steps, 1.0, 0.0))] * len(look)
    e2 = subspace.estimate(
        chain, score, detect, images[look], mixtures, jax.random.key(1), uids=look, draws=PATHS, max_draws=PATHS
    )
    lower = np.array([r.estimate.lower for r in e2])
    top, rest = int(np.sum(lower[:LOOKED_AT] > 0)), int(np.sum(lower[LOOKED_AT:] > 0))
    print(f"{member.sum()} of {len(images)} records trained on; {found.network_calls:,} network calls")
    for share, rate in recall.items():
        print(f"recall in the first {share:.0%}: {rate.hits} of {rate.n}, [{rate.lower:.3f}, {rate.upper:.3f}] at 95 %")
    print(f"sums in nats: trained on at most {found.score[member].max():.1f}, others {found.score[~member].min():.1f}")
    print(f"E2 above 0 (95 %): {top} of the first {LOOKED_AT}, {rest} of {LOOKED_AT} below the first 5 %")
    result: dict[str, Any] = {"recall": {str(share): dataclasses.asdict(rate) for share, rate in recall.items()}}
    result |= {"e2_top": top, "e2_rest": rest, "looked_at": LOOKED_AT, "network_calls": found.network_calls}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
