"""The audit of a model that was trained elsewhere: a diffusers checkpoint, or any score as a Python function.

    python launch.py --config=configs/audit_own_model.py --workdir=runs/own --mode=audit
    python launch.py --config=configs/audit_own_model.py --workdir=runs/own --mode=report

As it stands it audits the model of examples/audit_own_model.py, which has memorised the first 100 of scikit-learn's
digits: record 3 is one of them, record 500 is not. Expect, in about half a minute on two CPU cores: record 3 comes back
about once in 100 images, record 500 at most 4.5 times in 10,000 (with 95 % confidence). For a checkpoint:

    --config.model.kind=diffusers --config.model.path=DIRECTORY --config.model.steps=100 --config.model.n_train=N

with data that names your records and records.start/stop those that the model never saw; see docs/own_model.md.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_own.OwnModel`."""
    return ConfigDict(
        {
            "kind": "own_model",
            "seed": 0,
            "data": {"source": "digits", "params": {}},
            "model": {
                "kind": "python",
                "path": "examples/audit_own_model.py:make_model",
                "n_train": 100,
                "steps": 100,
                "label": config_dict.placeholder(int),
                "params": {},
            },
            "records": {"private": (3, 500), "start": 1000, "stop": 1100},
            "detector": {"distance": "l2", "copy": {"noise": 0.1, "smooth": 0.15, "contrast": 0.1}},
            "audit": {
                "samples": 10000,
                "h_levels": 20,
                "h_draws": 32,
                "gamma": 0.05,
                "subspace_draws": 1024,
                "subspace_max_draws": 4096,
                "copies": 512,
                "false_positive_rate": 0.0,
                "share": 0.5,
                "level": 0.95,
                "chunk": 0,
                "memory_gb": 2.0,
                "check": True,
            },
            # Pictures of private records and of drawn images on the page: only where they may be seen.
            "report": {"show_private": False},
        }
    ).lock()
