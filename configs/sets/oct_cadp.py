"""A private copy of the retinal scans of `oct` (Kermany et al. 2018; licence CC BY 4.0), 128x128, by CADP.

    python launch.py --config=configs/sets/oct_cadp.py --workdir=runs/oct_cadp --config.data.params.path=DIR

DIR as there; the flow has the paper's size. The relation is for single records, though people have several.
"""

from ml_collections import ConfigDict

from configs.sets import base

OBTAIN = """
Get the OCT archive of "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification" from
https://data.mendeley.com/datasets/rscbjbr9sj (Kermany, Zhang, Goldbaum; licence CC BY 4.0), unpack it, and give
--config.data.params.path=DIR with DIR = OCT2017/train, which holds the folders CNV, DME, DRUSEN and NORMAL
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_cadp.Cadp`."""
    return base.private(
        {
            "source": "image_folder",
            "params": {
                "path": "data/OCT2017/train",
                "channels": 1,
                "crop": "square",
                "size": 128,
                "class_names": ("CNV", "DME", "DRUSEN", "NORMAL"),
                # CNV-1016042-1.jpeg: the number in the middle is the person, whatever the diagnosis.
                "person": r"^[A-Z]+-(\d+)-",
            },
            "obtain": OBTAIN,
        },
        depths=(4, 4, 4, 4),
        dense_depth=4,
        dense_width=1024,
    )
