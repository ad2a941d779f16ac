"""A private data set of the handwritten digits that ship with scikit-learn (1,797 images, 8x8), by CADP.

    python launch.py --config=configs/digits_cadp.py --workdir=runs/digits_cadp

Trains a conditional flow on a public half, releases the private records at five ε through it, trains classifiers on
what is released, and attacks the release. Expect, in at most eight minutes on two CPU cores: classifiers about 90 %
right at every ε, as on images that the flow draws by itself, and 95 % on the originals; an attacker who links private
images to their originals no better than by guessing at ε = 1, and a little better from somewhere between 2 and 8 on; a
measured ε below the claimed one.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_cadp.Cadp`."""
    return ConfigDict(
        {
            "kind": "cadp",
            "seed": 0,
            "data": {"source": "digits", "params": {}},
            "split": {"public": 0.5, "private": 0.3, "test": 0.2},
            "flow": {
                "params": {
                    "depths": (2, 2),
                    "conv_width": 16,
                    "dense_depth": 2,
                    "dense_width": 48,
                    "clamp": 1.5,
                    "scan": True,
                },
                "condition": "label",
                "training_precision": "float32",
                "preprocess": "affine",
                "logit_alpha": 0.05,
                "reconstruction": 0.0,
                "perturbation": 0.0,
                "trained_on": "public",
                "training": {
                    "steps": 500,
                    "batch_size": 128,
                    "learning_rate": 3e-3,
                    "warmup_steps": 50,
                    "schedule": "cosine",
                    "weight_decay": 1.0,
                    "ema_decay": 0.98,
                    "log_every": 50,
                    "checkpoint_every": 150,
                    # DP-SGD, off: set epsilon (and release.flow_training = "dp-sgd", flow.trained_on = "private").
                    "privacy": {
                        "epsilon": 0.0,
                        "noise_multiplier": 0.0,
                        "delta": 1e-5,
                        "clip_norm": 1.0,
                        "relation": "replace-one",
                        "augmentations": 1,
                        "micro_batch": 32,
                    },
                },
            },
            "release": {
                "relation": "replace-record-same-public-condition",
                "mechanism": "gaussian",
                "epsilons": (0.5, 1.0, 2.0, 4.0, 8.0),
                "delta": 1e-5,
                "rates": (),
                "total_epsilon": 12.0,
                "flow_training": "public",
                "records_per_person": 1,
                "coverage": 0.99,
                "coarse": 0,
                "label_epsilon": 0.0,
                "prior_matched": True,
                "ledger": "ledger.jsonl",
            },
            "evaluation": {
                "training": {
                    "steps": 600,
                    "batch_size": 64,
                    "learning_rate": 2e-3,
                    "warmup_steps": 20,
                    "schedule": "cosine",
                    "weight_decay": 1e-2,
                    "grad_clip_norm": 0.0,
                    "ema_decay": 0.99,
                    "log_every": 100,
                    "checkpoint_every": 300,
                },
                "target": "",
                "seeds": 5,
                "hidden": 128,
                "dp_hidden": 0,
                "level": 0.95,
                "dp_arm": "full-batch",
                "dp_steps": 10,
                "dp_clip": 1.0,
                "dp_learning_rate": 1.0,
                "dp_training": {
                    "steps": 60,
                    "batch_size": 128,
                    "learning_rate": 0.03,
                    "grad_clip_norm": 0.0,
                    "ema_decay": 0.9,
                    "log_every": 60,
                    "checkpoint_every": 60,
                    "tensorboard": False,
                    "privacy": {"clip_norm": 1.0, "micro_batch": 256},
                },
                "pixel_block": 4,
            },
            "attack": {
                "records": 0,
                "study_epsilons": (16.0, 64.0, 256.0, 1024.0),
                "trials": 64_000_000,
                "tightness": 0.8,
                "trial_dim": 2,
                "confidence": 0.99,
                "level": 0.95,
                "release_repeats": 100,
            },
            # The digits are public: their pictures may be shown.
            "report": {"show_private": True},
            "outputs": {"wandb": "", "grid_every": 0, "grid_images": 16, "png": 0},
            "profile": 0,
        }
    ).lock()
