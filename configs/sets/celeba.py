"""CelebA (Liu et al. 2015): 202,599 photographs of 10,177 people; licence: non-commercial research only.

    python launch.py --config=configs/sets/celeba.py --workdir=runs/celeba \
        --config.data.params.path=DIR/img_align_celeba \
        --config.data.params.table=DIR/people.csv

people.csv is made of the publisher's list of identities by the line below; with tensorflow-datasets' celeb_a
(configs/sets/tfds_images.py) people are unknown and would be spread over the sets. Images (218x178) are cut to the
middle square and resampled to 64x64 in colour: 10 GB of memory; --config.data.params.limit takes fewer.
"""

from ml_collections import ConfigDict, config_dict

from configs.sets import base

OBTAIN = """
Get img_align_celeba.zip and identity_CelebA.txt from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (Liu et al.,
ICCV 2015; licence: non-commercial research only), unpack into DIR, make the table by (echo path,identity,label; awk
'{print $1","$2",0"}' DIR/identity_CelebA.txt) > DIR/people.csv, and give
--config.data.params.path=DIR/img_align_celeba --config.data.params.table=DIR/people.csv
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.score(
        {
            "source": "image_folder",
            "params": {
                "path": "data/celeba/img_align_celeba",
                "table": "data/celeba/people.csv",
                "channels": 3,
                "crop": "square",
                "size": 64,
                "limit": config_dict.placeholder(int),
            },
            "obtain": OBTAIN,
        },
        side=64,
        careless=1_000,
        held_out=5_000,
    )
