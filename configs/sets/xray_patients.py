"""Chest X-rays with their patients in one npz archive: `images` uint8 [N, H, W], `labels` [N], `patient` [N].

    python launch.py --config=configs/sets/xray_patients.py --workdir=runs/xray_patients --config.data.params.path=FILE

Made for the X-rays of Kermany et al. 2018 (licence CC BY 4.0) at 64x64; any archive of these arrays will do.
"""

from ml_collections import ConfigDict, config_dict

from configs.sets import base

OBTAIN = """
Get the X-rays as for configs/sets/pneumonia_xray.py (Kermany et al. 2018; licence CC BY 4.0) or your own, save uint8
images [N, H, W], whole-number labels [N] and strings patient [N] with numpy.savez, and give
--config.data.params.path=FILE
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.score(
        {
            "source": "npz",
            "params": {"path": "data/cxr_patients_64.npz", "size": config_dict.placeholder(int)},
            "obtain": OBTAIN,
        },
        side=64,
        careless=100,
        held_out=200,
    )
