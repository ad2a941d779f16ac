"""A private copy of the chest X-rays of `pneumonia_xray` (Kermany et al. 2018; licence CC BY 4.0), 128x128, by CADP.

    python launch.py --config=configs/sets/pneumonia_xray_cadp.py --workdir=runs/pneumonia_xray_cadp \
        --config.data.params.path=DIR

DIR as there. The flow has the paper's size: four stages of four couplings, four dense ones of width 1,024. The
relation is for single records, though people have several: for a guarantee for people set
--config.release.records_per_person=30.
"""

from ml_collections import ConfigDict

from configs.sets import base

OBTAIN = """
Get ChestXRay2017.zip of "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification" from
https://data.mendeley.com/datasets/rscbjbr9sj (Kermany, Zhang, Goldbaum; licence CC BY 4.0), unpack it, and give
--config.data.params.path=DIR with DIR = chest_xray/train, which holds the folders NORMAL and PNEUMONIA
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_cadp.Cadp`."""
    return base.private(
        {
            "source": "image_folder",
            "params": {
                "path": "data/chest_xray/train",
                "channels": 1,
                "crop": "square",
                "size": 128,
                "class_names": ("NORMAL", "PNEUMONIA"),
                # The same number under bacteria and virus is another person; normal ones are numbered by themselves.
                # Names of the second and of the third version of the set.
                "person": r"(person\d+_(?:bacteria|virus))|IM-(\d+)|^[A-Z]+-(\d+)-",
            },
            "obtain": OBTAIN,
        },
        depths=(4, 4, 4, 4),
        dense_depth=4,
        dense_width=1024,
    )
