"""What the test of secrets and processes runs: the secret of private training, and the order of private records.

    python distributed_secrets.py FOLDER COORDINATOR PROCESSES PROCESS

joins a job and writes FOLDER/numbers_<process>.json: what two private runs draw, "a" and "b". A file
FOLDER/fingerprint.json says that "a" goes on from a checkpoint with this fingerprint. Only the first process has the
folders of the runs: the others must learn of the secrets from it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from launching import changed_config

from diffusion_privacy import settings_kinds
from diffusion_privacy.errors import InputError
from diffusion_privacy.stages import private_order
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import secret, sharding

RECORDS, STEPS, RATE = 400, 3, 0.3


def drawn(folder: Path, run: str, process: int) -> dict[str, Any]:
    """Records and noise of the first steps of ``run``, and the order in which its workdir has private records."""
    noted = folder / "fingerprint.json"
    fingerprint = json.loads(noted.read_text()) if run == "a" and noted.exists() else None
    where = folder / run if process == 0 else folder / f"{run} of process {process}"
    found = secret.obtain(where, {"run": "toy"}, fingerprint)
    place = Workdir(folder / f"{run} workdir", settings_kinds.parse(changed_config("digits_cadp", {})))
    return {
        "fingerprint": found.fingerprint,
        "records": [found.sample(step, RECORDS, RATE).tolist() for step in range(STEPS)],
        "noise": [found.noise_keys(step, 2).tolist() for step in range(STEPS)],
        "order": private_order.places(place, np.arange(RECORDS)).tolist(),
    }


def main(folder: Path, coordinator: str, processes: int, process: int) -> None:
    if processes > 1:
        sharding._HEARTBEAT_S = 40
        assert sharding.initialise(coordinator, processes, process)
    try:
        numbers = {run: drawn(folder, run, process) for run in "ab"}
        (folder / f"numbers_{process}.json").write_text(json.dumps(numbers))
    except InputError as error:
        # As launch.py ends.
        print(error, file=sys.stderr)
        sharding.leave(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
