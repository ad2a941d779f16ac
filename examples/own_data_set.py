"""Use a data set that is yours, in two ways: as files with a table, and as a function of your own.

    python examples/own_data_set.py

First way: a folder of images and a CSV table that says path, label and person; no code is needed. Second way: a
function that returns `Records`, under a name in `SOURCES`, which any config can then use. Both divide the records so
that no person is in two sets, and write down who is where without naming anybody.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_privacy import settings
from diffusion_privacy.data import sources
from diffusion_privacy.data.assemble import assemble, number_people
from diffusion_privacy.data.records import Records
from diffusion_privacy.stages import study as stage
from diffusion_privacy.stages.workdir import Workdir

WARD = [(f"patient-{i // 3}", i % 2) for i in range(180)]
"""Who is on which image, and whether they are ill: three images a person."""


def pixels(number: int) -> np.ndarray:
    """Image ``number`` of the ward: uint8 [16, 16], a bright spot where the person's is, and noise."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 60, (16, 16), dtype=np.uint8)
    row, column = divmod(number // 3, 14)
    image[row % 14 : row % 14 + 3, column : column + 3] = 255 if number % 2 else 180
    return image


def write_folder(folder: Path) -> dict[str, str]:
    """Writes the ward as a hospital might have it; returns the parameters of the source ``image_folder``."""
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "identity"])
        for number, (person, ill) in enumerate(WARD):
            name = f"scan{number:03}.png"
            Image.fromarray(pixels(number)).save(folder / name)
            table.writerow([name, "ill" if ill else "healthy", person])
    return {"path": str(folder), "table": str(folder / "table.csv")}


def ward(*, limit: int | None = None) -> Records:
    """The same as a source of one's own. Its arguments are what ``config.data.params`` may say."""
    count = len(WARD) if limit is None else min(limit, len(WARD))
    number = np.arange(count)
    return assemble(
        np.stack([pixels(int(i)) for i in number]),
        np.array([ill for _, ill in WARD[:count]]),
        number_people([person for person, _ in WARD[:count]]),
        number,
        num_classes=2,
        name="ward",
    )


def divided(source: str, params: dict[str, object], workdir: Path) -> dict[str, set[int]]:
    """The people in each set of an anonymity study of these records; its first stage goes on from here."""
    training = {"steps": 100, "batch_size": 32}
    config = {
        "seed": 0,
        "data": {"source": source, "params": params},
        "split": {"careless": 20, "controls": 3, "held_out": 30},
        "fingerprint": {"name": "disc"},
        "score": {"network": {"name": "mlp"}, "sde": {"name": "vp"}, "training": training},
        "sampler": {},
        "detector": {"training": training},
        "audit": {"samples": {"careless": 1_000, "careful": 1_000}},
    }
    study = settings.parse(settings.Study, config)
    roles = stage.load_roles(study, Workdir(workdir, study))
    sets = {"trained on": roles.train["careful"], "controls": roles.controls, "held out": roles.held_out}
    return {name: set(records.identity.tolist()) for name, records in sets.items()}


def main() -> dict[str, dict[str, set[int]]]:
    found = {}
    sources.SOURCES["ward"] = ward  # or a line in diffusion_privacy/data/sources.py
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "ward"
        folder.mkdir()
        for source, params in (("image_folder", write_folder(folder)), ("ward", {})):
            found[source] = divided(source, dict(params), Path(place) / source)
            written = json.loads((Path(place) / source / "data.json").read_text())
            print(
                f"{source}: {written['shape']}, people in each set: { {k: len(v) for k, v in found[source].items()} }"
            )
            print(f"  a held-out person as data.json names them: {written['people']['held_out'][0]}")
    return found


if __name__ == "__main__":
    main()
