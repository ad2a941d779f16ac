"""The anonymity study of images of your own, from whichever source reads them; for a GPU.

    python launch.py --config=configs/own_images.py --workdir=runs/mine \
        --config.data.source=SOURCE --config.data.params.FIELD=VALUE

SOURCE is one of ``digits``, ``idx``, ``npz``, ``tfds``, ``image_folder`` and ``dicom_folder``. Fields that are not
given keep what the source does by itself; one that is given and that the source does not have is refused. What has no
flag here (crop, window, attributes, names of columns) is written into a copy of this file. ``split.careless``
and ``split.held_out`` are to be set to fit your data. Tables of your own: configs/csv_cadp.py.
"""

from ml_collections import ConfigDict, config_dict

from configs.sets import base

OBTAIN = """
Name your own data: --config.data.params.path=FOLDER of image_folder or dicom_folder (a sub-folder for each class, or a
CSV with path, label, identity as --config.data.params.table=FILE), --config.data.params.path=FILE of npz
(with --config.data.params.split=train, or the like, for a MedMNIST file),
--config.data.params.images=FILE --config.data.params.labels=FILE of idx, --config.data.params.name=SET of tfds
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.score(
        {
            "source": "image_folder",
            "params": {
                "path": config_dict.placeholder(str),
                "images": config_dict.placeholder(str),
                "labels": config_dict.placeholder(str),
                "name": config_dict.placeholder(str),
                "split": config_dict.placeholder(str),
                "data_dir": config_dict.placeholder(str),
                "table": config_dict.placeholder(str),
                "person": config_dict.placeholder(str),
                "identities": config_dict.placeholder(str),
                "identity": config_dict.placeholder(str),
                "finding": config_dict.placeholder(str),
                "size": config_dict.placeholder(int),
                "limit": config_dict.placeholder(int),
            },
            "obtain": OBTAIN,
        },
        side=28,
        careless=100,
        held_out=200,
    )
