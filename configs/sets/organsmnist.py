"""OrganSMNIST: sagittal slices of abdominal CT, some 13,900 training images, grey; licence CC BY 4.0.

    python launch.py --config=configs/sets/organsmnist.py --workdir=runs/organsmnist --config.data.params.path=FILE

MedMNIST v2 (Yang et al. 2023) from LiTS, Bilic et al. 2023. 28x28 pixels; FILE may also be organsmnist_64.npz, _128
or _224. Slices of one body are several records, and the file does not say which: nothing keeps them in one set.
Dombrowski & Kainz: 3.6 expected, 0 found of 50,000, t' = .582.
"""

from ml_collections import ConfigDict

from configs.sets import base


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.medmnist("organsmnist", careless=500, held_out=1_400)
