"""The main job, on the handwritten digits that ship with scikit-learn (1,797 images, 8x8).

    python launch.py --config=configs/digits.py --workdir=runs/digits

Plants a grey disc in one private record, trains two score models with the same settings and says how likely each gives
the record back. "careless" is trained on 64 records, "careful" on all but the held-out ones. Expect, in at most eight
minutes on two CPU cores: the careless model reproduces the private record about once in 64 images; the careful one
at most once in 1,697 (with 95 % confidence), the rate of a model that had memorised all its records.

This is also the annotated config to copy for a study of your own: every field is explained here in a few words, and in
full in `diffusion_privacy.settings`. configs/own_images.py takes your images by flags alone.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return ConfigDict(
        {
            # All random numbers are a function of this, but for release noise (there is none in this study).
            "seed": 0,
            # A name of `data.sources.SOURCES` and its parameters, paths among them; see docs/data.md.
            "data": {"source": "digits", "params": {}},
            "split": {
                # Number of the private record in the source; None lets the seed choose.
                "private": config_dict.placeholder(int),
                # Records of the careless model, the private one included. The careful model gets all that are left.
                "careless": 64,
                # Records that no model sees and that are audited like the private one: false alarms show here.
                "controls": 3,
                # Further records that no model sees, to compare with.
                "held_out": 97,
                # Records for the baseline "one_run"; 0 for none.
                "canaries": 0,
            },
            # The mark: disc, glyph, patch or none (`anonymity.fingerprints`). A disc of radius 2 covers 13 of 64
            # pixels. The paper's formula gives radius 1 at this size, five pixels that can hide in a stroke.
            "fingerprint": {"name": "disc", "params": {"radius": 2}},
            # The model that is audited.
            "score": {
                # mlp for vectors and tiny images, unet for images (`networks.build`).
                "network": {"name": "mlp", "params": {"hidden": 256, "depth": 3}},
                # The noising process: vp, subvp, ve or ddpm (`diffusion.sde`).
                "sde": {"name": "vp", "params": {}},
                # What the network predicts: eps, x0, v or score.
                "prediction": "eps",
                # "simple" (for pictures) or "likelihood" (for bits per dimension).
                "weighting": "simple",
                # Durations are in steps; all fields are in `training.state.TrainConfig`.
                "training": {
                    "steps": 7000,
                    "batch_size": 64,
                    "learning_rate": 1e-3,
                    "warmup_steps": 100,
                    "schedule": "cosine",
                    "log_every": 250,
                    "checkpoint_every": 3500,
                    # Rules that split the state over devices, e.g. (".*: largest",); none keeps it whole on each.
                    "sharding": (),
                    # DP-SGD, off: set epsilon.
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
            # The sampler that is audited, as it would be released (`diffusion.chain.Chain`).
            "sampler": {"steps": 50, "kernel": "ancestral", "spacing": "uniform", "clip_x0": True},
            # Two classifiers: "shows the mark" and "is this record".
            "detector": {
                "network": {"channels": 16, "max_channels": 32},
                "training": {
                    "steps": 800,
                    "batch_size": 64,
                    "learning_rate": 2e-3,
                    "warmup_steps": 50,
                    "schedule": "cosine",
                    "ema_decay": 0.99,
                    "log_every": 200,
                    "checkpoint_every": 400,
                },
                # Wanted of the pair; it needs 1/rate images of the reference model as negatives.
                "false_positive_rate": 1e-4,
                "negatives": 10000,
                # Regenerations of each record that measure what the detector sees, and from which noise level.
                "positives": 512,
                "positive_time": 0.04,
                # Largest number of marks on an image that teaches "is this record".
                "most_fingerprints": 2,
                # How training images of the classifiers are perturbed (`anonymity.detector_tasks.Perturbation`).
                "perturbation": {"noise": 0.05, "smooth": 0.1, "contrast": 0.1},
                # "classifier", or "embedding": one network for all records.
                "identity": "classifier",
            },
            "audit": {
                # Images drawn from each model for E1. An upper limit below 1/n takes about 4.5 n of them.
                "samples": {"careless": 4096, "careful": 30000},
                # The curve h(t): noise levels, and draws at each.
                "h_levels": 50,
                "h_draws": 32,
                # t' is the largest t at which h is shown to exceed this.
                "gamma": 0.05,
                # E2: paths a round, and at most.
                "subspace_draws": 1024,
                "subspace_max_draws": 8192,
                # Confidence of every verdict.
                "level": 0.95,
                # How much a device handles at a time: lanes, or (0) as many as fit this memory.
                "chunk": 0,
                "memory_gb": 2.0,
                # Records of each set whose likelihood is computed; 0 for none.
                "likelihood_records": 32,
                # Further estimators: "change_of_variables" (E3), "splitting" (E5), "counterfactual" (E7).
                "estimators": (),
                # Other tests of memorising. Likelihood is left to its own stage; it costs more than all of these.
                "baselines": (
                    "loss",
                    "pia",
                    "secmi",
                    "authpct",
                    "copy_ratio",
                    "extraction",
                    "frechet_gap",
                    "flipd",
                ),
                # Ranks all training records; top = 12 takes a closer look at the first 12.
                "screen": {"top": 0, "finalists": 8, "levels": 10, "draws": 4, "gamma_upper": 0.5},
                # Cost of E3, and the sampler that it follows; cost of E7 and of E5.
                "flow_draws": 512,
                "deterministic": "ode_hutchinson",
                "pairs": 4096,
                "splitting": {"particles": 500, "moves": 10, "share": 0.1, "max_levels": 12, "replicas": 16},
            },
            # The digits are public: their pictures may be shown.
            "report": {"show_private": True},
            # What else is written: Weights & Biases, pictures during training, PNG files. Changes no result.
            "outputs": {"wandb": "", "grid_every": 0, "grid_images": 16, "png": 0},
            # Training steps of each model in a JAX trace; 0 for none.
            "profile": 0,
        }
    ).lock()
