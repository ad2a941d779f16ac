"""The main job as README gives it: the careless model is caught and the careful one comes out clean, in one run."""

import pytest
from launching import launch

from diffusion_privacy.reports import schema


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_careless_is_caught_and_careful_is_clean(tmp_path):
    """Seeds are fixed, so the numbers are those of one draw; the limits asked for leave room for another compiler."""
    result = launch("--config=configs/digits.py", f"--workdir={tmp_path}", timeout=1500, without=("NPROC",))
    assert result.returncode == 0, result.stderr
    release = schema.read(tmp_path / "report" / "release.json")
    private = {name: model["records"][0] for name, model in release["models"].items()}
    careless, careful = private["careless"], private["careful"]
    assert careless["role"] == careful["role"] == "private"

    assert careless["verdict"]["status"] == "leaks"
    assert 0.2 / 64 < careless["verdict"]["estimate"] < 3 / 64
    e1, e2 = careless["direct"], careless["subspace"]
    assert e2 is not None
    assert e2["reliable"], e2["reasons"]
    assert e2["lower"] > 0
    assert max(e1["lower"], e2["lower"]) <= min(e1["upper"], e2["upper"])
    assert careless["t_prime"]["statistical"]["value"] is not None

    assert careful["verdict"]["status"] == "no leak above bound"
    assert careful["verdict"]["upper"] < 1 / release["models"]["careful"]["n_train"]

    for model in release["models"].values():
        for record in model["records"][1:]:
            assert record["role"] == "control"
            assert record["verdict"]["status"] != "leaks"

    page = (tmp_path / "report" / "index.html").read_text()
    assert release["answer"].split(";")[0] in page
    for name in ("samples", "nearest", "regenerated"):
        assert any((tmp_path / "report" / "figures").glob(f"{name}_*.png")), name
    assert "ETA" in result.stderr
