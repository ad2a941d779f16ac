"""A made-up but realistic joined release and its arrays: numbers as a study of the digits would give them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sample_release import HEIGHT, WIDTH, curve, direct, subspace, t_prime, verdict

from diffusion_privacy.reports import joined_standing, joined_wording
from diffusion_privacy.reports.joined_figures import JoinedArrays
from diffusion_privacy.reports.joined_schema import WAYS

N = 540
MARKED, CONTROLS = (12, 87), (1711, 1725)


def interval(value: float, lower: float, upper: float) -> dict[str, Any]:
    return {"value": value, "lower": lower, "upper": upper, "level": 0.95}


def utility(accuracy: float, frechet: float, recall: float, n: int = N) -> dict[str, Any]:
    seeds = [accuracy - 0.01, accuracy, accuracy + 0.01]
    return {
        "n_train": n,
        "accuracy": {**interval(accuracy, accuracy - 0.02, min(1.0, accuracy + 0.02)), "seeds": seeds},
        "frechet": interval(frechet, 0.9 * frechet, 1.15 * frechet),
        "precision": interval(0.8 * accuracy, 0.8 * accuracy - 0.03, 0.8 * accuracy + 0.03),
        "recall": interval(recall, max(0.0, recall - 0.04), min(1.0, recall + 0.04)),
    }


def _record(role: str, index: int, model: bool, scale: float, **parts: Any) -> dict[str, Any]:
    return {
        "role": role,
        "index": index,
        "label": index % 10,
        "fingerprint": {"kind": "disc", "radius": 1, "centre": [5, 2]},
        "t_prime": t_prime(scale or None, scale or None, None if scale else "below") if model else None,
        "h_curve": curve(scale) if model else None,
        "in_copy": None if model else 0,
        "subspace": None,
        **parts,
    }


def leak(index: int) -> dict[str, Any]:
    return _record(
        "private", index, True, 0.8,
        direct=direct(0.00153, 0.00139, 0.00179, 46, 30_000),
        subspace=subspace(0.0015, 0.0012, 0.0018, 480, 0.41, True),
        verdict=verdict("leaks", 0.00139, 0.0015, 0.00179, 1 / N, "It is drawn as a memoriser would."),
    )  # fmt: skip


def clean(index: int, role: str, model: bool, scale: float = 0.0) -> dict[str, Any]:
    return _record(
        role, index, model, scale, direct=direct(0.0, 0.0, 1.31e-4, 0, 30_000),
        verdict=verdict("no leak above bound", 0.0, 0.0, 1.31e-4, 1 / N, "It is shown at a tenth of 1/n at most."),
    )  # fmt: skip


def undecided(index: int) -> dict[str, Any]:
    return _record(
        "private", index, True, 0.25, direct=direct(4e-4, 2.2e-4, 0.0021, 12, 30_000),
        subspace=subspace(3.2e-4, 1e-5, 9.4e-3, 22, 0.86, False),
        verdict=verdict("not certified", 0.0, 4e-4, 0.0021, 1 / N, "Neither a leak nor its absence is certified.")
        | {"more_samples": "certify if hits come as they did"},
    )  # fmt: skip


def attack(auc: float, tpr: float, few: bool = False) -> dict[str, Any]:
    def at(fpr: float, value: float) -> dict[str, Any]:
        return {"false_positive_rate": fpr, **interval(value, 0.6 * value, 1.6 * value), "reason": ""}

    last: dict[str, Any] = at(0.001, 0.4 * tpr)
    if few:
        last |= {"value": None, "lower": None, "upper": None, "reason": "540 non-members give no rate below 1 in 540"}
    return {
        "name": "loss of denoising",
        "what": "mean denoising loss over eight noise levels; small losses are taken for members",
        "members": N,
        "non_members": 540,
        "auc": interval(auc, auc - 0.03, auc + 0.03),
        "points": [at(0.01, tpr), last],
    }


def linkage(first: float, p_value: float) -> dict[str, Any]:
    def found(share: float, chance: float) -> dict[str, Any]:
        return {
            **interval(share, 0.7 * share, 1.4 * share),
            "hits": round(share * N),
            "n": N,
            "chance": chance,
            "p_value": p_value,
        }

    return {
        "name": "released",
        "kind": "released",
        "epsilon": 4.0,
        "similarity": 0.21,
        "rank1": found(first, 0.0185),
        "rank10": found(4 * first, 0.185),
    }


def bound(index: int, upper: float, models: int) -> dict[str, Any]:
    silent = upper >= 1
    return {
        "index": index,
        "value": 1e-5,
        "upper": upper,
        "level": 0.95,
        "without": {"value": 0.0, "lower": 0.0, "upper": min(1.0, 3.7 / models), "level": 0.95},
        "models": models,
        "images": 4096 * models,
        "models_needed": 120_000,
        "reliable": not silent,
        "assumes": ["the models without the record were trained independently, each with its own seeds"],
        "reasons": [f"the bound is 1: too few models ({models}) or too large an ε"] if silent else [],
    }


def guarantee(epsilon: float | None, stages: list[str], mechanism: str, upper: float = 1.0) -> dict[str, Any]:
    if epsilon is None:
        return {
            "epsilon": None, "delta": 0.0, "relation": "replace-one", "mechanism": mechanism, "public": [],
            "stages": stages, "why": "it was trained on the records without noise", "sentence": "No guarantee.",
            "certified": [],
        }  # fmt: skip
    return {
        "epsilon": epsilon,
        "delta": 1e-5,
        "relation": "replace-record-same-public-condition" if "cut" in mechanism else "replace-one",
        "mechanism": mechanism,
        "public": ["the number of records", "the flow", "the class of each record"],
        "stages": stages,
        "why": "",
        "sentence": f"ε = {epsilon:g} at δ = 10⁻⁵ if nothing else is given away.",
        "certified": [bound(index, upper, 8) for index in MARKED],
    }


def _way(name: str, what: str, use: dict[str, Any], risk: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": joined_standing.TITLES[name],
        "kind": "data set" if name == "copy" else "model",
        "what": what,
        "n_train": N,
        "folder": f"share/{name}",
        "utility": use,
        "risk": risk,
        "guarantee": given,
    }


def _risk(private: list[dict[str, Any]], model: bool, found: dict[str, Any], link: Any = None) -> dict[str, Any]:
    controls = [clean(index, "control", model) for index in CONTROLS]
    return {"records": [*private, *controls], "linkage": link, "attack": found}


def make_ways() -> dict[str, Any]:
    copy_stage, cut = ["release eps_4"], "Gaussian noise on a latent cut to a fixed length"
    return {
        "raw_model": _way(
            "raw_model", "A score model that learnt from the records as they are.", utility(0.951, 3.2, 0.83),
            _risk([leak(i) for i in MARKED], True, attack(0.81, 0.21)),
            guarantee(None, ["train raw model"], "none"),
        ),
        "dp_model": _way(
            "dp_model", "A score model that learnt from the records with clipped and noised gradients.",
            utility(0.48, 61.0, 0.22),
            _risk([undecided(MARKED[0]), clean(MARKED[1], "private", True)], True, attack(0.51, 0.012, few=True)),
            guarantee(8.0, ["train DP-SGD model, run 5f1c"], "DP-SGD, 60 steps of 135 records on average"),
        ),
        "copy_model": _way(
            "copy_model", "A score model that learnt from the private copy.", utility(0.83, 22.5, 0.47),
            _risk([clean(i, "private", True, 0.1) for i in MARKED], True, attack(0.53, 0.014)),
            guarantee(4.0, copy_stage, cut),
        ),
        "copy": _way(
            "copy", "Each record through the flow, cut, noised, and back; classes kept.", utility(0.84, 19.8, 0.51),
            _risk([clean(i, "private", False) for i in MARKED], False, attack(0.55, 0.02), linkage(0.041, 0.002)),
            guarantee(4.0, copy_stage, cut, 0.0321),
        ),
    }  # fmt: skip


def make_ledger() -> dict[str, Any]:
    gaussian = {"type": "GaussianDpEvent", "noise_multiplier": 1.13}
    sampled = {"type": "PoissonSampledDpEvent", "sampling_probability": 0.25, "event": gaussian}
    return {
        "entries": [
            {"stage": "train raw model", "event": None, "records": N},
            {
                "stage": "train DP-SGD model, run 5f1c",
                "event": {"type": "SelfComposedDpEvent", "event": sampled, "count": 60},
                "records": N,
            },
            {
                "stage": "release eps_4",
                "event": {"type": "ComposedDpEvent", "events": [{"type": "NoOpDpEvent"}, gaussian]},
                "records": N,
            },
            {"stage": "audit: detectors and thresholds", "event": None, "records": None},
        ],
        "guarantee": False,
        "sentence": "no guarantee: train raw model, audit: detectors and thresholds touched the records",
        "uncovered": ["train raw model", "audit: detectors and thresholds"],
        "not_recorded": [],
        "stated_total": {"epsilon": 16.0, "delta": 1e-5},
    }


def make_yardsticks() -> list[dict[str, Any]]:
    return [
        {"name": name, "what": what, "utility": utility(*numbers)}
        for name, what, *numbers in (
            ("originals", "the private records themselves", 0.965, 1.1, 0.96),
            ("public", "what the flow learnt from", 0.93, 4.0, 0.9),
            ("flow", "images that the flow draws for the classes", 0.8, 25.0, 0.44),
        )
    ]


def make_joined() -> dict[str, Any]:
    """A release that follows joined-1.0, its answer, limits and open points written by `joined_wording`."""
    release: dict[str, Any] = {
        "schema_version": "joined-1.0",
        "program": {"name": "diffusion_privacy", "version": "0.1.0"},
        "versions": {"python": "3.11.9", "jax": "0.10.2", "numpy": "2.4.6"},
        "device": {"platform": "cpu", "kind": "x86_64", "count": 2},
        "seed": 0,
        "config": {"data": {"source": "digits"}, "score": {"training": {"steps": 3000}}, "release": {"epsilon": 4.0}},
        "config_hash": "9b1c63c0f2a3c1d87f4bb8d5f0e1a2b3",
        "question": "Four ways to share 540 records of the digits: which may leave, under which promise?",
        "data": {
            "source": "digits", "n": 1797, "shape": [HEIGHT, WIDTH, 1], "classes": 10, "private": N, "public": 800,
            "test": 357, "marked": len(MARKED), "controls": len(CONTROLS),
        },
        "level": 0.95,
        "detector": {
            "false_positive_rate": {"value": 2e-4, "lower": 4.1e-5, "upper": 5.9e-4, "level": 0.95, "n": 15_000},
            "true_positive_rate": {"value": 0.963, "lower": 0.941, "upper": 0.978, "level": 0.95, "n": 512},
            "thresholds": {"fingerprint": 1.873, "identity": 0.4421},
        },
        "ways_to_share": make_ways(),
        "yardsticks": make_yardsticks(),
        "ledger": make_ledger(),
        "timings": {"train": {"compile_s": 6.2, "run_s": 171.0}, "audit": {"run_s": 61.7, "compile_s": 8.8}},
    }  # fmt: skip
    return complete(release)


def complete(release: dict[str, Any]) -> dict[str, Any]:
    """The release with the three fields that are written from the others."""
    bare = {k: v for k, v in release.items() if k not in ("answer", "limits", "uncertified")}
    return {
        **bare,
        "answer": joined_wording.answer(bare),
        "limits": joined_wording.limits(bare),
        "uncertified": joined_wording.uncertified(bare),
    }


def make_joined_arrays(images: np.ndarray | None = None, seed: int = 0) -> JoinedArrays:
    """``images`` [n, 8, 8, 1] stands in for the data; noise in [-1, 1] by default."""
    rng = np.random.default_rng(seed)
    if images is None:
        images = rng.uniform(-1, 1, (60, HEIGHT, WIDTH, 1))
    images = images.astype(np.float32)
    marked = images[: len(MARKED)].copy()
    marked[:, 1:3, 5:7] = 1.0
    spread = {"raw_model": 0.05, "dp_model": 0.9, "copy_model": 0.4, "copy": 0.3}

    def noised(clean_: np.ndarray, name: str) -> np.ndarray:
        # More noise from one to the next, so that the nearest come first.
        steps = np.linspace(0.8, 1.2, clean_.shape[-4])[:, None, None, None]
        return (clean_ + spread[name] * steps * rng.normal(size=clean_.shape)).astype(np.float32)

    nearest = {name: noised(np.repeat(marked[:, None], 6, axis=1), name) for name in WAYS}
    return JoinedArrays(
        marked=marked,
        originals=images[: len(MARKED)],
        nearest=nearest,
        distances={
            name: np.sqrt(np.sum((near - marked[:, None]) ** 2, axis=(2, 3, 4))) for name, near in nearest.items()
        },
        shared={name: noised(images[20:28], name) for name in WAYS},
        copy_originals=images[30:38],
        copies=noised(images[30:38], "copy"),
    )
