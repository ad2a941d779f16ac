"""Images given several attributes at once: read from a table, published or randomised, learned, predicted, attacked."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess

import jax
import numpy as np
import pytest
from launching import changed_config
from tiny_cadp import study

from configs.sets import celeba_cadp
from diffusion_privacy import settings_kinds
from diffusion_privacy.data import sources
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.condition import PublicAttributes, RandomizedAttributes
from diffusion_privacy.reports import cadp_schema
from diffusion_privacy.stages import cadp_arms, cadp_audit, cadp_study, run
from diffusion_privacy.stages.workdir import Workdir

pytestmark = pytest.mark.lightly_compiled

Image = pytest.importorskip("PIL.Image")

NAMES = ("even", "round", "small")
COUNT = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as PNG files with a table of three facts about each; two images a person."""
    place = tmp_path_factory.mktemp("marked")
    digits = sources.load("digits", limit=COUNT)
    with (place / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "identity", *NAMES])
        for i, (image, label) in enumerate(zip(digits.image, digits.label, strict=True)):
            Image.fromarray(np.uint8((image[..., 0] + 1) * 127.5)).save(place / f"{i}.png")
            writer.writerow([f"{i}.png", f"p{i // 2}", int(label % 2 == 0), int(label in (0, 6, 8, 9)), int(label < 5)])
    return place


def marked(folder, changes=None):
    params = {
        "path": str(folder),
        "table": str(folder / "t.csv"),
        "columns": {"label": "even"},
        "attributes": list(NAMES),
    }
    data = {"source": "image_folder", "params": params, "obtain": ""}
    asked = {"flow.condition": "attributes", "evaluation.target": "even", "release.epsilons": (1.0,)}
    return study({"data": data, **asked, **(changes or {})})


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("flow.condition", "both", r"config\.flow\.condition"),
        ("evaluation.target", "", r"config\.evaluation\.target: expected the attribute to predict"),
        ("flow.condition", "label", r"config\.evaluation\.target: expected none with 'label'"),
        ("evaluation.target", "odd", r"config\.evaluation\.target: expected one of even, round, small, got 'odd'"),
        ("data", {"source": "digits", "params": {}, "obtain": ""}, r"config\.data\.params\.attributes: expected names"),
    ],
)
def test_faults_are_named(folder, tmp_path, path, value, words):
    with pytest.raises(InputError, match=words):
        run.run(marked(folder, {path: value}), tmp_path, "train")


def test_four_ways_to_share_are_conditioned_on_a_class():
    raw = changed_config("digits_release", {"flow.condition": "attributes"})
    with pytest.raises(InputError, match=r"config\.flow\.condition: expected 'label'"):
        settings_kinds.parse(raw)


def test_the_label_is_the_target_and_the_response_is_of_all_attributes(folder, tmp_path):
    settings = marked(folder, {"evaluation.target": "round"})
    parts = cadp_study.load_parts(settings, Workdir(tmp_path, settings))
    assert not set(parts.public.identity) & set(parts.private.identity)
    np.testing.assert_array_equal(parts.private.label, parts.private.attributes[:, 1])
    assert cadp_study.make_condition(settings, parts.private) == PublicAttributes(3)
    assert cadp_study.make_model(settings, parts.private).cond_dim == 3
    any_other = {"release.label_epsilon": 1.5, "release.relation": "replace-record-and-condition"}
    told = cadp_study.make_condition(marked(folder, any_other), parts.private)
    assert told == RandomizedAttributes((0.5, 0.5, 0.5))
    assert cadp_audit.by_class(settings, parts)
    assert not cadp_audit.by_class(marked(folder, any_other), parts)
    alike = cadp_audit.alike(parts.private.attributes)
    assert len(np.unique(alike)) == len(np.unique(parts.private.attributes, axis=0))


@pytest.mark.parametrize("by", ["label", "attributes"])
def test_the_guessed_condition_of_a_test_record_says_nothing_of_it(folder, tmp_path, by):
    settings = marked(folder)
    parts = cadp_study.load_parts(settings, Workdir(tmp_path, settings))
    test = parts.test.take(np.resize(np.arange(len(parts.test)), 4000))
    guessed = cadp_arms.with_guessed_condition(test, parts.public, by, jax.random.key(0))
    mine, truth = (r.label if by == "label" else r.attributes[:, 0] for r in (guessed, test))
    # Independent bits: 5 deviations of a correlation at n = 4,000 are .08.
    assert abs(np.corrcoef(mine, truth)[0, 1]) < 0.08
    assert abs(mine.mean() - parts.public.label.mean()) < 0.05
    np.testing.assert_array_equal(guessed.image, test.image)


@pytest.mark.slow
@pytest.mark.parametrize("label_epsilon", [0.0, 3.0], ids=["published", "randomised"])
def test_a_study_of_marked_images_end_to_end(folder, tmp_path, label_epsilon):
    relation = "replace-record-and-condition" if label_epsilon else "replace-record-same-public-condition"
    settings = marked(folder, {"release.label_epsilon": label_epsilon, "release.relation": relation})
    run.run(settings, tmp_path)
    private = cadp_study.load_parts(settings, Workdir(tmp_path, settings)).private
    place = tmp_path / "releases" / "eps_1"
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["condition"] == ("randomized_response_attributes" if label_epsilon else "public_attributes")
    assert manifest["condition_epsilon"] == (pytest.approx(3.0) if label_epsilon else None)
    assert ("the attributes of every record" in manifest["public"]) == (not label_epsilon)
    assert max(1.0, label_epsilon) < manifest["epsilon"] + 1e-9 <= 1.0 + label_epsilon + 2e-9
    assert any("several records" in warning for warning in manifest["warnings"])
    assert manifest["count_out"] == len(private) == len(list((place / "images").glob("*.png")))
    with (place / "attributes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", *NAMES]
    told = np.array([row[1:] for row in rows[1:]], np.int32)
    released = cadp_study.load_release(Workdir(tmp_path, settings), 1.0, private, "even").records
    np.testing.assert_array_equal(released.attributes, told)
    np.testing.assert_array_equal(released.label, told[:, 0])
    # Each kept with probability e/(e + 1) = .731; 5 standard errors.
    kept = np.mean(told == private.attributes)
    assert kept == 1.0 if not label_epsilon else abs(kept - 0.731) < 5 * np.sqrt(0.731 * 0.269 / told.size)
    release = cadp_schema.read(tmp_path / "report" / "release.json")
    assert release["by_class"] == (not label_epsilon)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "attributes" in page
    with pytest.raises(InputError, match="expected the classes of a release, got attributes"):
        cadp_study.load_release(Workdir(tmp_path, settings), 1.0, private)


@pytest.mark.skipif(shutil.which("awk") is None, reason="needs awk")
def test_the_table_of_celeba_is_made_by_the_line_that_its_config_gives(tmp_path):
    names = celeba_cadp.ATTRIBUTES
    (tmp_path / "identity_CelebA.txt").write_text("000001.jpg 2880\n000002.jpg 2937\n")
    signs = [" ".join("1" if (i + k) % 3 == 0 else "-1" for k in range(40)) for i in range(2)]
    lines = ["2", " ".join(names) + " ", f"000001.jpg  {signs[0]}", f"000002.jpg {signs[1]}"]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    for name in ("000001.jpg", "000002.jpg"):
        Image.fromarray(np.zeros((218, 178, 3), np.uint8)).save(tmp_path / name)
    command = celeba_cadp.OBTAIN[celeba_cadp.OBTAIN.index("awk ") :].partition(", and give")[0]
    subprocess.run(["sh", "-c", " ".join(command.split())], cwd=tmp_path, check=True)
    params = celeba_cadp.get_config().data.params.to_dict()
    records = sources.load(
        "image_folder", **{**params, "path": str(tmp_path), "table": str(tmp_path / "attributes.csv"), "num_classes": 2}
    )
    assert records.attribute_names == names
    expected = [[int((i + k) % 3 == 0) for k in range(40)] for i in range(2)]
    assert records.attributes.tolist() == expected
    assert records.image.shape == (2, 128, 128, 3)
