"""Optical coherence tomography of the retina (Kermany et al. 2018): 84,000 images, four classes; licence CC BY 4.0.

    python launch.py --config=configs/sets/oct.py --workdir=runs/oct --config.data.params.path=DIR

DIR holds the folders CNV, DME, DRUSEN and NORMAL with the JPEG files as published; persons are read from their names.
Images are cut to the middle square and resampled to 64x64.
"""

from ml_collections import ConfigDict

from configs.sets import base

OBTAIN = """
Get the OCT archive of "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification" from
https://data.mendeley.com/datasets/rscbjbr9sj (Kermany, Zhang, Goldbaum; licence CC BY 4.0), unpack it, and give
--config.data.params.path=DIR with DIR = OCT2017/train, which holds the folders CNV, DME, DRUSEN and NORMAL
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.score(
        {
            "source": "image_folder",
            "params": {
                "path": "data/OCT2017/train",
                "channels": 1,
                "crop": "square",
                "size": 64,
                # CNV-1016042-1.jpeg: the number in the middle is the person, whatever the diagnosis.
                "person": r"^[A-Z]+-(\d+)-",
            },
            "obtain": OBTAIN,
        },
        side=64,
        careless=1_000,
        held_out=5_000,
    )
