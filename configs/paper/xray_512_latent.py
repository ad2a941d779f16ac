"""Latent diffusion at 512 pixels on ChestX-ray14, with a U-Net of the size that Dombrowski & Kainz audited; for a GPU.

    python launch.py --config=configs/paper/xray_512_latent.py --workdir=runs/xray_512_latent \
        --config.data.params.path=DIR/images \
        --config.data.params.table=DIR/Data_Entry_2017.csv

Every model trains an autoencoder of its own on its own records (latents 64x64x4), then the score model on the latents.
The U-Net has 110.5 million parameters, the paper's 113.7 million (arXiv 2306.01363). Detectors look at decoded images.
All 112,120 images are 118 GB as float32: take the first so many with --config.data.params.limit, or a table of a part
of the patients, and fit ``split`` to it. Without a CSV, `configs.sets.pneumonia_xray` says how folders of classes are
read.
"""

from ml_collections import ConfigDict

from configs.sets import chestxray14


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    config = chestxray14.get_config()
    with config.unlocked():
        config.data.params.update({"size": 512})
        config.score.autoencoder = ConfigDict(
            {
                "network": {
                    "halvings": 3,
                    "latent_channels": 4,
                    "channels": 64,
                    "max_channels": 256,
                    "blocks": 2,
                    "dtype": "bfloat16",
                },
                # Five of 255 grey levels.
                "std": 0.04,
                "kl_weight": 1.0,
                "training": {
                    "steps": 50_000,
                    "batch_size": 16,
                    "learning_rate": 1e-4,
                    "warmup_steps": 500,
                    "schedule": "constant",
                    "grad_clip_norm": 1.0,
                    "ema_decay": 0.999,
                    "log_every": 500,
                    "checkpoint_every": 5_000,
                },
            }
        )
        config.score.network.params.update({"channel_mult": (1, 2, 4, 4), "attention_levels": (2, 3)})
        config.score.training.update({"steps": 100_000, "batch_size": 64})
        config.sampler.clip_x0 = False
        config.detector.training.update({"batch_size": 32})
        config.detector.negatives = 10_000
        config.audit.samples.update({"careless": 5_000, "careful": 20_000})
        config.audit.memory_gb = 32.0
        config.audit.likelihood_records = 0
    return config.lock()
