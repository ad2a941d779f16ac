"""Chest X-rays of children with and without pneumonia (Kermany et al. 2018): 5,216 training images, licence CC BY 4.0.

    python launch.py --config=configs/sets/pneumonia_xray.py --workdir=runs/pneumonia_xray --config.data.params.path=DIR

DIR holds the folders NORMAL and PNEUMONIA with the JPEG files as published; persons are read from their names. Images
are cut to the middle square and resampled to 64x64; --config.data.params.size=128 takes more. `xray_patients` reads
an archive, configs/sets/pneumonia_xray_cadp.py makes a private copy.
"""

from ml_collections import ConfigDict

from configs.sets import base

OBTAIN = """
Get ChestXRay2017.zip of "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification" from
https://data.mendeley.com/datasets/rscbjbr9sj (Kermany, Zhang, Goldbaum; licence CC BY 4.0), unpack it, and give
--config.data.params.path=DIR with DIR = chest_xray/train, which holds the folders NORMAL and PNEUMONIA
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.score(
        {
            "source": "image_folder",
            "params": {
                "path": "data/chest_xray/train",
                "channels": 1,
                "crop": "square",
                "size": 64,
                # The same number under bacteria and virus is another person; normal ones are numbered by themselves.
                # Names of the second and of the third version of the set.
                "person": r"(person\d+_(?:bacteria|virus))|IM-(\d+)|^[A-Z]+-(\d+)-",
            },
            "obtain": OBTAIN,
        },
        side=64,
        careless=250,
        held_out=500,
    )
