"""Bundles: sampled from alone they give the bits of the checkpoint, and nothing else is in them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages.bundle_release import INDEX, TELLING, make_release, number, record

from diffusion_privacy.anonymity import montecarlo
from diffusion_privacy.data import sources
from diffusion_privacy.data.records import Records
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.errors import InputError
from diffusion_privacy.interop import files
from diffusion_privacy.mechanisms.export import to_uint8
from diffusion_privacy.reports import card
from diffusion_privacy.settings import Named, Sampler
from diffusion_privacy.stages import bundle, bundle_write
from diffusion_privacy.stages.bundle import FILES, Labels, Model
from diffusion_privacy.training.checkpoint import Checkpoints, restore_ema
from diffusion_privacy.training.state import TrainState

pytestmark = pytest.mark.lightly_compiled

pytest.importorskip("safetensors")

NETWORK = Named("mlp", {"hidden": 16, "depth": 1, "num_classes": 10})
MODEL = Model(
    NETWORK, Named("vp", {}), "eps", Sampler(steps=5), (8, 8, 1),
    Labels(10, True, tuple("0123456789"), (0.1,) * 10),
)  # fmt: skip


@pytest.fixture(scope="module")
def records() -> Records:
    return sources.load("digits", limit=40)


def weights(seed: int) -> Any:
    """Parameters of the network as training would leave them, as far as a file can tell."""
    task, rng = bundle.task_of(MODEL), np.random.default_rng(seed)
    batch = {"image": jnp.zeros((1, 8, 8, 1)), "label": jnp.zeros(1, jnp.int32)}
    shapes = jax.eval_shape(lambda key: task.init(key, batch), jax.random.key(0))
    return jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run: a checkpoint whose average is not its parameters."""
    workdir, params = tmp_path_factory.mktemp("trained"), weights(0)
    with Checkpoints(workdir, {}, keep=1) as checkpoints:
        moments = {"mu": weights(2), "nu": weights(3)}
        checkpoints.save(TrainState(jnp.zeros((), jnp.int32), params, weights(1), moments), {})
        checkpoints.wait()
    return workdir


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "dp_model"
    return write(folder, trained)


def write(folder: Path, trained: Path, **changes: Any) -> Path:
    fields = {"params": restore_ema(trained)[0], "model": MODEL, "way": "dp_model", "release": make_release()}
    return bundle_write.write_model_bundle(folder, **(fields | changes))


@pytest.mark.slow
@pytest.mark.parametrize("label", [0, 3])
def test_samples_from_a_bundle_alone_are_those_of_the_checkpoint_bit_for_bit(made, trained, tmp_path, label):
    away = tmp_path / "somewhere else"
    shutil.copytree(made, away)
    score, chain, shape = bundle.load(away, label)
    ours = montecarlo.sample(chain, score, shape, 7, jax.random.key(1))
    task, params = bundle.task_of(MODEL), restore_ema(trained)[0]
    given = jnp.int32(label)
    theirs = montecarlo.sample(
        Chain(task.sde, 5, clip_x0=True), task.score(params, given), (8, 8, 1), 7, jax.random.key(1)
    )
    np.testing.assert_array_equal(ours, theirs)
    # The comparison has power: another class and a change in the last bit of one weight are seen.
    other = bundle.load(away, 4)[0]
    assert not np.array_equal(ours, montecarlo.sample(chain, other, shape, 7, jax.random.key(1)))
    nudged = jax.tree.map(lambda leaf: np.nextafter(leaf, np.float32(9)), params)
    assert not np.array_equal(ours, montecarlo.sample(chain, task.score(nudged, given), shape, 7, jax.random.key(1)))


def test_nothing_but_the_average_is_in_it(made, trained, records):
    assert sorted(path.name for path in made.iterdir()) == sorted(FILES)
    assert all(path.is_file() for path in made.iterdir())
    assert [path.name for path in made.parent.iterdir()] == ["dp_model"], "no hidden folder is left"
    tensors = files.read_safetensors(made / bundle.WEIGHTS)
    average = files.flat(restore_ema(trained)[0])
    assert set(tensors) == set(average)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, average[name])
    assert not any(np.array_equal(tensor, files.flat(weights(0))[name]) for name, tensor in tensors.items())
    # The file is a header and these numbers: the last parameters and the moments have no room in it.
    content = (made / bundle.WEIGHTS).read_bytes()
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + sum(4 * t.size for t in tensors.values())
    everything = b"".join((made / name).read_bytes() for name in FILES)
    # A hash of a configuration that is known but for its seed gives the seed away: there are 2^32.
    assert make_release()["config_hash"][:12].encode() not in everything
    for word in (b"opt_state", b"secret", b"ema_params", b"seed", b"workdir", b"90125", str(trained).encode()):
        assert word not in everything, word
    forms = (records.image, records.image.astype(np.float16), to_uint8(records.image))

    def shows_a_record(content: bytes) -> bool:
        return any(row.tobytes() in content for form in forms for row in form)

    assert not shows_a_record(everything)
    assert all(shows_a_record(everything[:99] + form[3].tobytes() + everything[99:]) for form in forms)


def test_hashes_and_guarantee_are_in_the_manifest_and_damage_is_found(made, tmp_path):
    manifest = json.loads((made / bundle.MANIFEST).read_text())
    for name in set(FILES) - {bundle.MANIFEST}:
        assert manifest["files"][name] == hashlib.sha256((made / name).read_bytes()).hexdigest()
        folder = tmp_path / name
        shutil.copytree(made, folder)
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        (folder / name).write_bytes(bytes(content))
        with pytest.raises(InputError, match=rf"{re.escape(name)}: its SHA-256 is not that of manifest\.json"):
            bundle.load(folder)
        (folder / name).unlink()
        with pytest.raises(InputError, match=rf"{re.escape(name)}: expected this file"):
            bundle.load(folder)
    assert manifest["guarantee"]["epsilon"] == 4.0
    assert manifest["guarantee"]["stages"] == ["train dp_model, DP-SGD, run 1"]
    assert "certified" not in manifest["guarantee"]
    assert (manifest["to_be_given_away"], manifest["guarantee_covers"]) == (True, ["model.safetensors"])
    assert manifest["versions"]["jax"] == "0.10.2"
    with pytest.raises(InputError, match=r"manifest\.json: expected this file"):
        bundle.load(tmp_path)


def test_a_model_is_drawn_from_with_a_class_if_and_only_if_it_was_trained_with_one(made, trained, tmp_path):
    """Without one the network would take its null class, which no record trained and no audit looked at."""
    for label in (None, -1, 10):
        with pytest.raises(InputError, match=rf"label: expected one of 0 … 9, the model knows classes; got {label}"):
            bundle.load(made, label)
    task, params = bundle.task_of(MODEL), restore_ema(trained)[0]
    with pytest.raises(InputError, match=r"label: expected a class"):
        task.score(params)
    # The same network, trained with no record's label: then its null class is what was trained.
    blind = dataclasses.replace(MODEL, labels=Labels())
    folder = write(tmp_path / "blind", trained, model=blind)
    assert bundle.load(folder).shape == (8, 8, 1)
    with pytest.raises(InputError, match=r"label: expected none, the model knows no classes; got 0"):
        bundle.load(folder, 0)


@pytest.mark.slow
def test_the_lines_of_the_card_run_in_the_folder(made, monkeypatch):
    monkeypatch.chdir(made)
    [code] = re.findall(r"^```python\n(.*?)^```$", (made / bundle.CARD).read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["images"].shape == (16, 8, 8, 1)
    score, chain, shape = bundle.load(made, 0)
    np.testing.assert_array_equal(names["images"], montecarlo.sample(chain, score, shape, 16, jax.random.key(0)))


def test_a_card_says_what_the_report_says_and_keeps_private_statistics_to_itself(made, trained, tmp_path):
    text = (made / bundle.CARD).read_text()
    assert text.startswith("# Model trained with DP-SGD\n")
    for words in ("81.2", "higher", "lower", "replace-one", "4.000", "0.00001|1e-05", "0 to 9|0, 1", "540 private"):
        assert any(word in text for word in words.split("|")), words
    assert "DP-SGD \\| noise" in text, "a text with a bar stays one cell"
    everything = text + (made / bundle.MANIFEST).read_text()
    for telling in (f"{TELLING:g}", "733", "65.4", str(INDEX), "321 made", "class 7"):
        assert telling not in everything, telling
    assert "are covered by no guarantee" in text
    shown = write(tmp_path / "shown", trained, show_risk=True)
    text = (shown / bundle.CARD).read_text()
    for words in ("65.4", "no leak above bound", "321 made", "600 in 10,000 images", "does not hold for whoever"):
        assert words in text, words
    assert str(INDEX) not in text
    assert json.loads((shown / bundle.MANIFEST).read_text())["risk_on_card"] is True


def test_what_leaks_or_is_not_promised_is_bundled_on_request_alone_and_says_so_first(trained, tmp_path):
    leaking = make_release()
    leaking["ways_to_share"]["dp_model"]["risk"] = leaking["ways_to_share"]["raw_model"]["risk"]
    lost, contradicted, alarmed, weak = (make_release() for _ in range(4))
    lost["ledger"].update({"not_recorded": ["audit"], "guarantee": False})
    contradicted["ways_to_share"]["dp_model"]["risk"]["attack"]["points"][0].update(number(0.8))
    contradicted["ways_to_share"]["dp_model"]["guarantee"]["epsilon"] = 0.5
    alarmed["ways_to_share"]["dp_model"]["risk"]["records"][1] = record("control", "leaks")
    weak["ways_to_share"]["dp_model"]["guarantee"]["epsilon"] = 50.0
    for name, release, why in (
        ("raw_model", make_release(), "nothing is promised"),
        ("dp_model", leaking, "give back 1 of the private records"),
        ("dp_model", lost, "without an entry in the ledger"),
        ("dp_model", contradicted, "contradicts its promise"),
        ("dp_model", alarmed, "its audit is not to be trusted"),
        ("dp_model", weak, "next to none"),
    ):
        folder = tmp_path / f"{name} {why}"
        with pytest.raises(InputError, match=rf"bundle: {name} is not to be given away, .*{why}"):
            write(folder, trained, way=name, release=release)
        assert not folder.exists()
        write(folder, trained, way=name, release=release, allow_unprotected=True)
        text = (folder / bundle.CARD).read_text()
        first = text.splitlines()[0]
        assert first.startswith(f"# {card.KEEP}: ")
        assert why in first
        assert "software" not in text, "it is meant for nothing outside"
        manifest = json.loads((folder / bundle.MANIFEST).read_text())
        assert (manifest["to_be_given_away"], len(manifest["reasons_against"]) >= 1) == (False, True)
        assert bundle.load(folder, 0).shape == (8, 8, 1)


def test_a_bundle_is_complete_or_absent_and_never_overwritten(made, trained, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="dp_model: exists already"):
        write(made, trained)

    def full(path: Path, content: bytes) -> None:
        if path.name == bundle.MANIFEST:
            raise OSError("no space left")
        path.write_bytes(content)

    monkeypatch.setattr(bundle_write, "_write", full)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "out" / "dp_model", trained)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_no_average_of_this_network_is_refused(trained, tmp_path):
    params = restore_ema(trained)[0]
    tensors = files.flat(params)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    wrong = files.nested({**tensors, name: tensors[name][:-1]})
    holes = files.nested({**tensors, name: np.full_like(tensors[name], np.nan)})
    double = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    for given, words in (
        ({**params, "opt_state": {"mu": np.zeros(3, np.float32)}}, r"opt_state/mu is float32\[3\], expected nothing"),
        ({"params": {}}, "is nothing, expected float32"),
        (wrong, f"{name} is float32"),
        (double, "is float64"),
        ([params], "expected nested dictionaries of averaged parameters, got list"),
        (holes, "holds NaN"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            write(tmp_path / "x", trained, params=given)
        assert "\n" not in str(caught.value)
    for changes, words in (
        ({"way": "copy"}, "expected a model, but copy is a data set"),
        ({"way": "cheap"}, "expected one of raw_model, dp_model"),
        ({"release": {**make_release(), "seed": -1}}, r"release\.seed"),
    ):
        with pytest.raises(InputError, match=words):
            write(tmp_path / "x", trained, **changes)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (8, 8)}, "shape: expected H, W, C"),
        ({"prediction": "noise"}, "prediction must be one of"),
        ({"labels": {"number": 3, "names": ["a"]}}, r"labels\.names: expected one for each of 3 classes"),
        ({"labels": {"conditional": True}}, r"labels\.number: expected at least 1"),
        ({"labels": {"number": 2, "shares": [0.5, 0.4]}}, r"labels\.shares: expected shares that sum to 1"),
        ({"sampler": {"stepz": 3}}, r"config\.json\.sampler\.stepz: unknown field"),
        ({"sde": {"name": "xyz"}}, r"sde\.name: expected one of"),
        ({"network": {"name": "exec"}}, r"network\.name must be one of"),
        ({"sampler": {"steps": 1}}, "sampler: a reverse chain needs at least 2 steps"),
        ({"labels": {"number": 11, "conditional": True}}, r"labels\.number: expected the network's num_classes = 10"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(made, tmp_path, changes, words):
    """Also where somebody wrote the manifest anew for it: hashes find damage, not forgery."""
    folder = tmp_path / "x"
    shutil.copytree(made, folder)
    fields = json.loads((folder / bundle.CONFIG).read_text()) | changes
    (folder / bundle.CONFIG).write_text(json.dumps(fields))
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    manifest["files"][bundle.CONFIG] = hashlib.sha256((folder / bundle.CONFIG).read_bytes()).hexdigest()
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=words) as caught:
        bundle.load(folder, 0)
    assert "\n" not in str(caught.value)


def copy_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    np.savez(folder / "data.npz", image=np.zeros((3, 8, 8, 1), np.uint8), label=np.zeros(3, np.int32))
    manifest = {"epsilon": 4.0, "delta": 1e-5, "guarantee": "(4, 1e-05)-differentially private"} | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_card_is_put_beside_a_private_copy_once(tmp_path, monkeypatch):
    folder = copy_folder(tmp_path / "eps_4")
    path = bundle_write.write_card(folder, way="copy", release=make_release())
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "data.npz", "manifest.json"]
    text = path.read_text()
    assert text.startswith("# Private copy\n")
    monkeypatch.chdir(folder)
    [code] = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["images"].shape == (3, 8, 8, 1)
    with pytest.raises(InputError, match=r"README\.md: exists already"):
        bundle_write.write_card(folder, way="copy", release=make_release())
    with pytest.raises(InputError, match="expected a data set, but dp_model is a model"):
        bundle_write.write_card(folder, way="dp_model", release=make_release())
    with pytest.raises(InputError, match=r"manifest\.json: expected this file"):
        bundle_write.write_card(tmp_path, way="copy", release=make_release())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": None}, "promises nothing end to end, but the report claims ε = 4"),
        ({"guarantee": "none end to end; the latent step alone: ..."}, "promises nothing end to end"),
        ({"epsilon": 5.0}, "promises ε = 5 at δ = 1e-05, the report claims 4"),
    ],
)
def test_a_card_never_promises_more_than_the_release_itself(tmp_path, changes, words):
    folder = copy_folder(tmp_path / "eps_4", **changes)
    with pytest.raises(InputError, match=words):
        bundle_write.write_card(folder, way="copy", release=make_release())
    assert not (folder / "README.md").exists()
