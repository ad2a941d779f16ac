"""Devices, hypothesis settings and data for every test. Must run before anything imports jax."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if "jax" in sys.modules:
    raise RuntimeError("tests/conftest.py must run before jax is imported, or its device settings have no effect")


def _take_a_share_of_the_cores() -> None:
    """Gives each of several workers cores of its own, as far as there are enough and the system lets them be chosen.

    Two programs of two threads each wait for each other's threads on two cores: jobs side by side took a fifth longer
    that way than on a core each.
    """
    worker, count = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= count > 1:
            os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: count])


_take_a_share_of_the_cores()

# Simulated devices outnumber the cores; with fewer threads than devices a collective can wait for ever. Twice as many
# as devices are enough, and more only share the same core: chains took a tenth to a half longer with 16.
os.environ.setdefault("NPROC", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] != "cpu":
    # As `launch.py` has it: float32 products as such, not in the reduced precision that accelerators would choose.
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=4".strip()

_LIGHT = "JAX_DISABLE_MOST_OPTIMIZATIONS"

# The fast tests spend most of their time in the compiler: without the slow ones its optimisations do not pay, and its
# older code generator takes half the time (the slow tests run what users run). XLA aborts on flags that it does not
# know, so that one is given only to the version that has it.
if any("not slow" in argument for argument in sys.argv):
    os.environ[_LIGHT] = "1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# Accelerator images lack hypothesis; only the tests that use it need it.
if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    settings.register_profile("fixed", deadline=None, derandomize=True)
    settings.load_profile("fixed")

DATA_VARIABLE = "DIFFUSION_PRIVACY_DATA"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the development data sets: $DIFFUSION_PRIVACY_DATA, or ../shared/data beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get(DATA_VARIABLE, default))
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}; set {DATA_VARIABLE} to a folder that holds them")
    return folder


@pytest.fixture(autouse=True)
def _lightly_compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked ``lightly_compiled`` run without most of the compiler's work, programs that they launch too."""
    if request.node.get_closest_marker("lightly_compiled") is None or os.environ.get(_LIGHT) == "1":
        yield
        return
    import jax

    jax.config.update(_LIGHT.lower(), True)
    os.environ[_LIGHT] = "1"
    yield
    del os.environ[_LIGHT]
    jax.config.update(_LIGHT.lower(), False)


@pytest.fixture(autouse=True)
def _programs_of_its_own() -> Iterator[None]:
    """Each test traces anew what `training.programs` keeps: another may have planted a fault in what it calls."""
    yield
    if "diffusion_privacy.training.programs" in sys.modules:
        sys.modules["diffusion_privacy.training.programs"].forget()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; of the slow ones those with a time limit of their own first, because they are the longest."""
    items.sort(
        key=lambda item: (item.get_closest_marker("slow") is not None, item.get_closest_marker("timeout") is None)
    )
