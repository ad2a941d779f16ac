"""Network size against memorising, small: 500 records of PneumoniaMNIST at 14x14, MLPs of 64 … 512 units a layer.

    python launch.py --config=configs/paper/pneumonia_model_sweep.py --workdir=runs/pneumonia_models \
        --config.data.params.path=pneumoniamnist.npz

Another n is --config.sweep.sizes="(250,)"; sizes and widths are combined. See `pneumonia_sweep` for what differs
from the paper, whose own sweep goes from 113.7 to 28.4 million parameters at n = 1,770.
"""

from ml_collections import ConfigDict

from configs.paper import pneumonia_sweep


def get_config() -> ConfigDict:
    """`pneumonia_sweep` with these fields changed."""
    config = pneumonia_sweep.get_config().unlock()
    config.sweep = ConfigDict(
        {"sizes": (500,), "samples": 5000, "field": "hidden", "values": (64, 128, 256, 512), "reduce": 2}
    )
    return config.lock()
