"""ChestX-ray14 (Wang et al. 2017): 112,120 chest X-rays of 30,805 patients; free to use, with the NIH acknowledged.

    python launch.py --config=configs/sets/chestxray14.py --workdir=runs/chestxray14 \
        --config.data.params.path=DIR/images \
        --config.data.params.table=DIR/Data_Entry_2017.csv

DIR/images holds the PNG files of all twelve archives. Persons are the table's patients; a class is one combination of
findings. Images (1024x1024) are resampled to 64x64 and held in memory: 1.8 GB; --config.data.params.limit takes fewer.
"""

from ml_collections import ConfigDict, config_dict

from configs.sets import base

OBTAIN = """
Get images_001.tar.gz … images_012.tar.gz and Data_Entry_2017.csv from https://nihcc.app.box.com/v/ChestXray-NIHCC
(licence: no restrictions; cite Wang et al., CVPR 2017, and acknowledge the NIH Clinical Center), unpack all archives
into one DIR, so that DIR/images holds the PNG files, and give --config.data.params.path=DIR/images
--config.data.params.table=DIR/Data_Entry_2017.csv
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.score(
        {
            "source": "image_folder",
            "params": {
                "path": "data/chestxray14/images",
                "table": "data/chestxray14/Data_Entry_2017.csv",
                "columns": {"path": "Image Index", "label": "Finding Labels", "identity": "Patient ID"},
                "channels": 1,
                "size": 64,
                "limit": config_dict.placeholder(int),
            },
            "obtain": OBTAIN,
        },
        side=64,
        careless=875,
        held_out=7_000,
    )
