"""Every config file: it parses, says what it is, and where data are missing ends with how to obtain them."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT, changed_config, launch

from diffusion_privacy import settings_cadp, settings_kinds
from diffusion_privacy.data import sources, table_sources
from diffusion_privacy.errors import InputError, MissingDataError
from diffusion_privacy.stages import reading, run, train
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.workdir import Workdir

NAMES = sorted(
    ".".join(path.relative_to(ROOT / "configs").with_suffix("").parts)
    for path in (ROOT / "configs").rglob("*.py")
    if path.name != "__init__.py" and "def get_config(" in path.read_text()
)
SETS = [name for name in NAMES if name.startswith("sets.")]
PAPERS = (
    *("mnist", "celeba", "pneumonia_xray", "chestxray14", "oct", "breastmnist", "retinamnist", "pneumoniamnist"),
    *("bloodmnist", "organsmnist", "chestmnist"),
)


@pytest.mark.parametrize("name", NAMES)
def test_it_parses_and_its_source_takes_what_it_gives(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no data lie
    module = importlib.import_module(f"configs.{name}")
    path = f"configs/{name.replace('.', '/')}.py"
    assert f"--config={path}" in module.__doc__ or name.startswith("paper.")
    config = module.get_config()
    assert config.is_locked
    study = settings_kinds.parse(config.to_dict())
    tables = isinstance(study, settings_cadp.CadpTable)
    registry = table_sources.TABLES if tables else sources.SOURCES
    assert study.data.source in registry
    if tables or study.data.source == "digits":
        return
    with pytest.raises(MissingDataError) as caught:
        sources.load(study.data.source, **study.data.params)  # not: an argument that it does not take
    with pytest.raises(MissingDataError, match="expected") as told:
        run.run(study, tmp_path / "run")
    assert str(caught.value) in str(told.value)
    assert str(told.value).endswith(" ".join(study.data.obtain.split()))
    assert not (tmp_path / "run").exists()


def test_the_sets_of_the_papers_are_there_and_say_licence_and_place():
    assert {f"sets.{name}" for name in PAPERS} <= set(SETS)
    assert {"diabetes_cadp", "breast_cancer_cadp", "mnist_cadp", "sets.celeba_cadp"} <= set(NAMES)
    for name in SETS:
        module = importlib.import_module(f"configs.{name}")
        obtain = module.get_config().data.obtain
        assert "licence" in obtain, name
        assert "--config.data.params." in obtain, name
        assert "licence" in module.__doc__ or "free to use" in module.__doc__, name


def test_one_config_takes_every_source_by_flag(shared_data: Path):
    taken = {
        "digits": {},
        "idx": {f"{k}s": str(shared_data / "mnist" / f"train-{k}s-{v}-ubyte.gz") for k, v in _MNIST.items()},
        "npz": {"path": str(shared_data / "cxr_patients_64.npz"), "size": 28},
    }
    for source, params in taken.items():
        changes = {"data.source": source, **{f"data.params.{k}": v for k, v in {**params, "limit": 30}.items()}}
        records = reading.load(settings_kinds.parse(changed_config("own_images", changes)).data)
        assert len(records) == 30
    for source in sources.SOURCES.keys() - taken.keys():
        study = settings_kinds.parse(changed_config("own_images", {"data.source": source}))
        with pytest.raises(MissingDataError, match="Name your own data"):
            reading.require(study.data)
    study = settings_kinds.parse(changed_config("own_images", {"data.source": "digits", "data.params.table": "t.csv"}))
    with pytest.raises(InputError, match="source 'digits' takes no 'table'"):
        reading.load(study.data)


def test_a_split_is_asked_for_by_flag_and_by_its_place_in_the_config(tmp_path):
    parts, rng = {"train": 6, "val": 3, "test": 2}, np.random.default_rng(0)
    file = tmp_path / "medmnist.npz"
    arrays = {f"{p}_images": rng.integers(0, 256, (n, 4, 4), dtype=np.uint8) for p, n in parts.items()}
    np.savez(file, **arrays, **{f"{p}_labels": (np.arange(n) % 2)[:, None] for p, n in parts.items()})
    changes = {"data.source": "npz", "data.params.path": str(file), "data.params.size": 4}

    def data_of(more):
        return settings_kinds.parse(changed_config("own_images", {**changes, **more})).data

    flags = importlib.import_module("configs.own_images").get_config().data.params
    assert "split" in flags, "a flag can only change a field that the config has"
    assert len(reading.load(data_of({"data.params.split": "val+test"}))) == 5
    with pytest.raises(InputError, match=r"^config\.data\.params\.split is None; expected one of train, val, test, or"):
        reading.load(data_of({}))
    with pytest.raises(InputError, match=r"^config\.records\.held_out\.params\.limit is -1; expected"):
        reading.load(data_of({"data.params.split": "val", "data.params.limit": -1}), "config.records.held_out")
    # What is wrong with the file, and not with a field, is named as the file.
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: not a complete npz archive"):
        reading.load(data_of({"data.params.split": "val"}))


def test_missing_data_end_with_status_2_and_one_line(tmp_path):
    done = launch("--config=configs/sets/celeba.py", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: config.data.params: ")
    assert "licence" in lines[0]


def test_a_table_that_is_missing_says_where_it_is_to_be_had(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("adult_cadp", "heart_cadp", "csv_cadp"):
        study = settings_kinds.parse(importlib.import_module(f"configs.{name}").get_config().to_dict())
        with pytest.raises(InputError, match=r"config\.data\.params\.path: .*--config\.data\.params\.path=FILE"):
            run.run(study, tmp_path / "run")


TINY = {
    "score.network.params.channels": 8,
    "score.network.params.channel_mult": (1,),
    "score.network.params.blocks_per_level": 1,
    "score.network.params.attention_levels": (),
    "score.training.steps": 2,
    "score.training.warmup_steps": 0,
    "score.training.batch_size": 8,
}


@pytest.mark.slow
def test_where_the_data_are_at_hand_the_first_stage_begins(shared_data: Path, tmp_path):
    """One of its models; all of them on all sets would take minutes of compilation."""
    changes = {"data.params.path": str(shared_data / "cxr_patients_64.npz"), "data.params.size": 16, **TINY}
    study = settings_kinds.parse(changed_config("sets.xray_patients", changes))
    work = Workdir(tmp_path, study)
    roles = common.load_roles(study, work)
    train.fit_scores(study, work, roles, ["careless"])
    assert (tmp_path / "train" / "careless" / "checkpoints" / "2").is_dir()
    data = json.loads((tmp_path / "data.json").read_text())
    assert data["shape"] == [16, 16, 1]
    assert not set(data["people"]["careful"]) & set(data["people"]["held_out"])


@pytest.mark.slow
def test_the_papers_flow_of_mnist_learns_two_steps_and_releases_a_few_images(shared_data: Path, tmp_path):
    """Its network at full size, on real digits; training it takes an accelerator."""
    changes = {
        **{f"data.params.{k}s": str(shared_data / "mnist" / f"train-{k}s-{v}-ubyte.gz") for k, v in _MNIST.items()},
        "data.params.limit": 40,
        "flow.training.steps": 2,
        "flow.training.warmup_steps": 0,
        "flow.training.batch_size": 8,
        "release.epsilons": (1.0,),
    }
    study = settings_kinds.parse(changed_config("paper.mnist_cadp", changes))
    for mode in ("train", "privatize"):
        run.run(study, tmp_path, mode)
    manifest = json.loads((tmp_path / "releases" / "eps_1" / "manifest.json").read_text())
    assert (manifest["latent_dim"], manifest["count_out"], manifest["flow_training"]) == (784, 12, "public")
    assert len(list((tmp_path / "releases" / "eps_1" / "images").rglob("*.png"))) == 12


_MNIST = {"image": "idx3", "label": "idx1"}


def test_the_sets_at_hand_are_read_as_their_configs_say(shared_data: Path):
    """Numbers of records, classes and people, as counted from the files by other means."""
    mnist = importlib.import_module("configs.sets.mnist").get_config()
    with mnist.unlocked():
        for key, kind in (("images", "images-idx3"), ("labels", "labels-idx1")):
            mnist.data.params[key] = str(shared_data / "mnist" / f"train-{kind}-ubyte.gz")
    counts = np.bincount(reading.load(settings_kinds.parse(mnist.to_dict()).data).label)
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    for name, people, classes in (("xray_patients", 643, 3), ("pneumoniamnist", 4708, 2)):
        file = "cxr_patients_64.npz" if name == "xray_patients" else "pneumoniamnist.npz"
        found = changed_config(f"sets.{name}", {"data.params.path": str(shared_data / file)})
        records = reading.load(settings_kinds.parse(found).data)
        assert len(np.unique(records.identity)) == people
        assert records.num_classes == classes


@pytest.mark.parametrize("name", ["mnist_release", "pneumonia_release"])
def test_the_full_size_is_another_study_and_no_other_size_is_taken(name):
    module = importlib.import_module(f"configs.paper.{name}")
    small, full = (settings_kinds.parse(module.get_config(size).to_dict()) for size in ("small", "full"))
    assert (small.score.network.name, full.score.network.name) == ("mlp", "unet")
    assert full.score.training.steps > small.score.training.steps
    told = launch(f"--config=configs/paper/{name}.py:big", "--workdir=unused")
    assert told.returncode == 2
    assert told.stderr.strip().endswith("expected :small or :full after the config's file, got 'big'")
    assert len(told.stderr.strip().splitlines()) == 1


PLUGIN = """
import dataclasses

import numpy as np

from configs import digits
from diffusion_privacy.data import assemble, sources
from diffusion_privacy.diffusion.sde import SDES, VP
from diffusion_privacy.networks.build import NETWORKS
from diffusion_privacy.networks.mlp import MLP


@dataclasses.dataclass(frozen=True)
class Faster(VP):
    beta_max: float = 30.0


def stripes(*, count=60):
    number = np.arange(count)
    pixels = np.zeros((count, 8, 8), np.uint8)
    pixels[number, :, number % 8] = number[:, None]
    return assemble.assemble(pixels, number % 2, number, number, num_classes=2, name="stripes")


class Mine(MLP):
    width: int = 4


SDES["faster"], NETWORKS["mine"], sources.SOURCES["stripes"] = Faster, Mine, stripes


def get_config():
    config = digits.get_config()
    with config.unlocked():
        config.data = {"source": "stripes", "params": {}}
        config.split.update({"careless": 8, "held_out": 20})
        config.score.sde = {"name": "faster", "params": {"beta_max": 25.0}}
        config.score.network = {"name": "mine", "params": {"width": 3}}
    return config.lock()
"""


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_a_config_file_brings_its_own_process_network_and_source(tmp_path):
    """As docs/extending.md says. Sampling builds all three, and only then misses what was not trained."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    told = launch(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}", "--mode=sample")
    assert told.returncode == 2
    assert "expected a checkpoint, found none; train first" in told.stderr
    assert json.loads((tmp_path / "run" / "data.json").read_text())["name"] == "stripes"
    wrong = launch(
        f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'wrong'}", "--config.score.sde.name=slower"
    )
    assert wrong.returncode == 2
    assert "expected one of vp, subvp, ve, ddpm, faster, got 'slower'" in wrong.stderr
