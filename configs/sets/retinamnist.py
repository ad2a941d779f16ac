"""RetinaMNIST: retina photographs, 1,080 training images, colour; licence CC BY 4.0.

    python launch.py --config=configs/sets/retinamnist.py --workdir=runs/retinamnist --config.data.params.path=FILE

MedMNIST v2 (Yang et al. 2023) from DeepDRiD, Liu et al. 2022. 28x28 pixels; FILE may also be retinamnist_64.npz, _128
or _224. Persons are not in the file: every image is taken for another person. Dombrowski & Kainz: 46.3 expected, 52
found of 50,000, t' = .998.
"""

from ml_collections import ConfigDict

from configs.sets import base


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.medmnist("retinamnist", careless=100, held_out=110)
