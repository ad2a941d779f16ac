"""ChestMNIST: chest X-rays with 14 findings, 78,468 training images, grey; licence CC BY 4.0.

    python launch.py --config=configs/sets/chestmnist.py --workdir=runs/chestmnist --config.data.params.path=FILE

MedMNIST v2 (Yang et al. 2023) from ChestX-ray14, Wang et al. 2017. 28x28 pixels; FILE may also be chestmnist_64.npz,
_128 or _224. Persons are not in the file, though many have several images: nothing keeps them in one set. The class
is whether there is any finding. configs/sets/chestxray14.py reads the originals by patient. Dombrowski & Kainz: .6
expected, 0 found of 50,000, t' = .206.
"""

from ml_collections import ConfigDict

from configs.sets import base


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.medmnist("chestmnist", careless=1_000, held_out=7_000, finding="any")
