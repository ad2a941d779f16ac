"""Latent diffusion at 512 pixels on ChestX-ray14, with a U-Net of the size that Dombrowski & Kainz audited; for a GPU.

    python launch.py --config=configs/paper/xray_512_latent.py --workdir=runs/xray_512_latent \
        --config.data.params.path=DIR/images \
        --config.data.params.table=DIR/Data_Entry_2017.csv

Every model trains an autoencoder of its own on its own records (latents 64x64x4), then the score model on the latents.
The U-Net has 110.5 million parameters, the paper's 113.7 million (arXiv 2306.01363). Detectors look at decoded images.
All 112,120 images are 118 GB as float32: take the first so many with --config.data.params.limit, or a table of a part
of the patients, and fit ``split`` to it. Without a CSV, `configs.sets.pneumonia_xray` says how folders of classes are
read.

``--config=configs/paper/xray_512_latent.py:tiny`` proves that the pipeline runs, and nothing else: the same images of
512 pixels, latents of 64x64x4, kinds of networks and stages, with few channels, few steps and few draws: a quarter of
an hour of one CPU core for thirty images of a dozen patients (docs/results.md). What it prints about a record means
nothing: its networks have learnt next to nothing, and its intervals are as wide as so few draws make them.
"""

from ml_collections import ConfigDict

from configs.sets import chestxray14


def get_config(size: str = "full") -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`.

    Args:
      size: ``"full"``, or ``"tiny"`` to see all stages run.

    Raises:
      ValueError: another size.
    """
    if size not in ("full", "tiny"):
        raise ValueError(f"expected :full or :tiny after the config's file, got {size!r}")
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
        if size == "tiny":
            _tiny(config)
    return config.lock()


def _tiny(config: ConfigDict) -> None:
    """Fewer of everything; the size of images and latents, the kinds of networks and the stages stay."""
    config.split.update({"careless": 8, "controls": 1, "held_out": 8})
    autoencoder = config.score.autoencoder
    autoencoder.network.update({"channels": 8, "max_channels": 32, "blocks": 1, "dtype": "float32"})
    short = {"warmup_steps": 5, "log_every": 10}
    autoencoder.training.update(
        {**short, "steps": 40, "batch_size": 2, "learning_rate": 3e-3, "ema_decay": 0.9, "checkpoint_every": 40}
    )
    config.score.network.params.update({"channels": 16, "blocks_per_level": 1})
    config.score.training.update(
        {**short, "steps": 30, "batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.9, "checkpoint_every": 30}
    )
    # The first of four even steps would leave nothing of a record.
    config.sampler.update({"steps": 4, "spacing": "quadratic"})
    config.detector.network.update({"channels": 8, "max_channels": 32})
    config.detector.training.update(
        {**short, "steps": 40, "batch_size": 4, "learning_rate": 3e-3, "ema_decay": 0.9, "checkpoint_every": 40}
    )
    config.detector.update({"negatives": 9, "positives": 8, "false_positive_rate": 0.1, "positive_time": 0.05})
    config.audit.samples.update({"careless": 8, "careful": 8})
    config.audit.update(
        {"h_levels": 2, "h_draws": 16, "subspace_draws": 100, "subspace_max_draws": 100, "memory_gb": 1.0}
    )
