"""A made-up release of a joined study, as small as its schema allows. Statistics of private records are numbers that
cannot come about otherwise, so that a test can look for them."""

from __future__ import annotations

from typing import Any

TELLING = 0.07331
"""A measured rate of a private record; its index and its class are telling too."""
INDEX, LABEL = 48151, 7


def number(value: float, spread: float = 0.1) -> dict[str, Any]:
    return {"value": value, "lower": value - spread, "upper": value + spread, "level": 0.95}


def record(role: str, status: str) -> dict[str, Any]:
    leaks = status == "leaks"
    limits = {"lower": 0.05 if leaks else 0.0, "upper": 0.09 if leaks else 1e-3}
    rate = TELLING if leaks else 0.0
    direct = {
        "value": rate, **limits, "level": 0.95, "n": 1000, "hits": int(1000 * rate), "ess": None, "reliable": True,
        "network_calls": 10, "method": "direct", "reasons": [],
    }  # fmt: skip
    said = {
        "status": status, "bound": 0.01, **limits, "estimate": rate, "level": 0.95, "sentence": "", "assumes": [],
        "samples_needed": None,
    }  # fmt: skip
    return {
        "role": role, "index": INDEX, "label": LABEL, "fingerprint": None, "verdict": said, "direct": direct,
        "subspace": None, "t_prime": None, "h_curve": None, "in_copy": None,
    }  # fmt: skip


def certified(upper: float) -> dict[str, Any]:
    return {
        "index": INDEX, "value": 0.0, "upper": upper, "level": 0.9, "without": {**number(0.005, 0.005), "lower": 0.0},
        "models": 321, "images": 3210, "models_needed": None, "reliable": upper < 1, "assumes": [], "reasons": [],
    }  # fmt: skip


def guarantee(epsilon: float | None, stages: list[str], delta: float = 1e-5) -> dict[str, Any]:
    promised = epsilon is not None
    return {
        "epsilon": epsilon,
        "delta": delta,
        "relation": "replace-one",
        "mechanism": "DP-SGD | noise" if promised else "none",
        "public": ["the number of records"],
        "stages": stages,
        "why": "" if promised else "no guarantee: raw training without a privacy event",
        "sentence": f"ε = {epsilon} at δ = {delta}." if promised else "No promise is made to any record.",
        "certified": [certified(0.04), certified(0.06)] if promised else [],
    }


def way(kind: str, title: str, status: str, promise: dict[str, Any]) -> dict[str, Any]:
    missing = {"value": None, "lower": None, "upper": None}
    return {
        "title": title,
        "kind": kind,
        "what": "What it is, in one sentence.",
        "n_train": 540,
        "folder": "somewhere",
        "utility": {
            "n_train": 2000,
            "accuracy": {**number(0.8123), "seeds": [0.8, 0.82]},
            "frechet": number(3.21),
            "precision": number(0.61),
            "recall": number(0.52),
        },
        "risk": {
            "records": [record("private", status), record("control", "no leak above bound")],
            "linkage": None,
            "attack": {
                "name": "loss",
                "what": "",
                "members": 540,
                "non_members": 300,
                "auc": number(0.6543),
                "points": [
                    {"false_positive_rate": 0.01, **number(0.2), "reason": ""},
                    {"false_positive_rate": 0.001, **missing, "level": 0.95, "reason": "too few"},
                ],
            },
        },
        "guarantee": promise,
    }


def make_release() -> dict[str, Any]:
    stages = ["train dp_model, DP-SGD, run 1", "release eps_4", "train copy_model"]
    clean, leak = "no leak above bound", "leaks"
    rates = {"value": 0.001, "lower": 0.0, "upper": 0.01, "level": 0.95, "n": 100}
    return {
        "schema_version": "joined-1.0",
        "program": {"name": "diffusion_privacy", "version": "0.1.0"},
        "versions": {"python": "3.11.9", "jax": "0.10.2"},
        "device": {"platform": "cpu", "kind": "x86_64", "count": 2},
        "seed": 90125,
        "config": {"data": {"source": "digits"}},
        "config_hash": "9b1c63c0f2a3c1d87f4bb8d5f0e1a2b3",
        "question": "May it be given away?",
        "answer": "It depends.",
        "limits": [],
        "data": {
            "source": "digits", "n": 1797, "shape": [8, 8, 1], "held_out": 100, "controls": 1, "classes": 10,
            "private": 540, "public": 900, "test": 300, "marked": 1,
        },
        "level": 0.95,
        "detector": {"false_positive_rate": rates, "true_positive_rate": rates, "thresholds": {}},
        "ways_to_share": {
            "raw_model": way("model", "Raw model", leak, guarantee(None, [])),
            "dp_model": way("model", "Model trained with DP-SGD", clean, guarantee(4.0, stages[:1])),
            "copy_model": way("model", "Model of the copy", clean, guarantee(4.0, stages[1:])),
            "copy": way("data set", "Private copy", clean, guarantee(4.0, stages[1:2])),
        },
        "yardsticks": [],
        "ledger": {
            "entries": [{"stage": stage, "event": {"type": "NoOpDpEvent"}, "records": None} for stage in stages],
            "guarantee": False,
            "sentence": "no guarantee: raw training",
            "uncovered": [],
            "not_recorded": [],
            "stated_total": {"epsilon": 10.0, "delta": 1e-5},
        },
        "uncertified": [],
        "timings": {},
    }  # fmt: skip
