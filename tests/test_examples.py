"""The programs under examples/ run as they stand and find what is true. The audit of one's own model is tested with its
stage (tests/stages/test_own_model_stage.py)."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def test_a_data_set_of_ones_own(monkeypatch):
    from diffusion_privacy.data import sources

    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
    module = example("own_data_set")
    found = module.main()
    # Persons are ranked by name in both, so the same seed divides both alike.
    assert found["image_folder"] == found["ward"]
    sets = list(found["ward"].values())
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert set.union(*sets) == set(range(60))


@pytest.mark.slow
def test_a_noising_process_of_ones_own(monkeypatch):
    from diffusion_privacy.diffusion import sde

    monkeypatch.setattr(sde, "SDES", dict(sde.SDES))
    module = example("own_sde")
    process = module.Straight()
    # What makes the coefficients right: they reproduce σ² (Fokker-Planck, second moment).
    t, h = np.array([0.1, 0.5, 0.9]), 1e-3
    drift, g = process.coefficients(np.ones((3, 1), np.float32), t)
    rate = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    np.testing.assert_allclose(rate, 2 * process.sigma(t) ** 2 * np.asarray(drift)[:, 0] + g**2, rtol=1e-4)
    # With other keys one of these intervals would miss the truth in about one run of ten.
    for estimate in module.main():
        assert estimate.reliable
        assert estimate.lower < 1 / module.KNOWN < estimate.upper


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_a_mechanism_of_ones_own():
    module = example("own_mechanism")
    manifest, honest, faulty = module.main()
    assert manifest.mechanism == "box_laplace"
    assert manifest.epsilon == pytest.approx(4.0)
    assert manifest.delta == 0.0
    assert honest.passed
    assert not faulty.passed
    assert faulty.bound.lower > 4.0


def test_every_example_is_run_by_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    for path in (ROOT / "examples").glob("*.py"):
        assert f'"{path.stem}"' in tests or f"{path.name}" in tests, path.name
