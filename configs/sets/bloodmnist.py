"""BloodMNIST: blood cells, 11,959 training images, colour; licence CC BY 4.0.

    python launch.py --config=configs/sets/bloodmnist.py --workdir=runs/bloodmnist --config.data.params.path=FILE

MedMNIST v2 (Yang et al. 2023) from Acevedo et al. 2020. 28x28 pixels; FILE may also be bloodmnist_64.npz, _128 or
_224. Persons are not in the file: every image is taken for another person. Dombrowski & Kainz: 4.2 expected, 0 found
of 50,000, t' = .241.
"""

from ml_collections import ConfigDict

from configs.sets import base


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.medmnist("bloodmnist", careless=500, held_out=1_000)
