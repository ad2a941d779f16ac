"""BreastMNIST: breast ultrasound, 546 training images, grey; licence CC BY 4.0.

    python launch.py --config=configs/sets/breastmnist.py --workdir=runs/breastmnist --config.data.params.path=FILE

MedMNIST v2 (Yang et al. 2023) from Al-Dhabyani et al. 2020. 28x28 pixels; FILE may also be breastmnist_64.npz, _128
or _224. Persons are not in the file: every image is taken for another person. Dombrowski & Kainz: 91.6 expected, 57
found of 50,000, t' = .886.
"""

from ml_collections import ConfigDict

from configs.sets import base


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.medmnist("breastmnist", careless=50, held_out=60)
