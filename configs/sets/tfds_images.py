"""Any image set of tensorflow-datasets: fashion_mnist as it stands (Xiao et al. 2017; licence MIT), patch_camelyon, …

    python launch.py --config=configs/sets/tfds_images.py --workdir=runs/tfds_images \
        --config.data.params.name=fashion_mnist

The set must have been prepared once, with network and tensorflow; its licence is on its page in the catalogue.
Nothing is downloaded here.
"""

from ml_collections import ConfigDict, config_dict

from configs.sets import base

OBTAIN = """
The licence of each set is on its page in the catalogue of tensorflow-datasets; pip install '.[tfds]'
brings tensorflow for the preparation; another folder or set: --config.data.params.data_dir=DIR
--config.data.params.name=NAME
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.score(
        {
            "source": "tfds",
            "params": {
                "name": "fashion_mnist",
                "split": "train",
                "data_dir": config_dict.placeholder(str),
                "label": "label",
                "identity": config_dict.placeholder(str),
                "channels": config_dict.placeholder(int),
                "size": config_dict.placeholder(int),
            },
            "obtain": OBTAIN,
        },
        side=28,
        careless=500,
        held_out=5_000,
    )
