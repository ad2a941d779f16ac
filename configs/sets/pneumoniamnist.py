"""PneumoniaMNIST: paediatric chest X-rays, 4,708 training images, grey; licence CC BY 4.0.

    python launch.py --config=configs/sets/pneumoniamnist.py --workdir=runs/pneumoniamnist \
        --config.data.params.path=FILE

MedMNIST v2 (Yang et al. 2023) from Kermany et al. 2018. 28x28 pixels; FILE may also be pneumoniamnist_64.npz, _128 or
_224. Persons are not in the file, and some have images in train and val: give a table of patients (columns split,
index, patient) with --config.data.params.identities if you have one. Dombrowski & Kainz: 10.6 expected, 2 found of
50,000, t' = .718.
"""

from ml_collections import ConfigDict

from configs.sets import base


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.medmnist("pneumoniamnist", careless=250, held_out=500)
