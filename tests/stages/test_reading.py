"""Nobody is in two sets, what is written of people leads back to nobody, and missing data end with what to do."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from launching import changed_config

from diffusion_privacy import settings, settings_kinds
from diffusion_privacy.data import people, sources
from diffusion_privacy.errors import InputError, MissingDataError
from diffusion_privacy.stages import cadp_study, joined_study, reading, run
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.workdir import Workdir

PEOPLE = 40


def study(**changes):
    return settings.parse(settings.Study, changed_config("digits", changes))


@functools.cache
def digits(count):
    return sources.load("digits", limit=count)


@given(
    identity=st.lists(st.integers(0, 60), min_size=20, max_size=120),
    careless=st.integers(2, 15),
    controls=st.integers(1, 8),
    held_out=st.integers(1, 15),
    seed=st.integers(0, 2**32 - 1),
    named=st.booleans(),
)
def test_no_person_is_in_two_roles_of_a_score_study(identity, careless, controls, held_out, seed, named):
    source = dataclasses.replace(digits(len(identity)), identity=np.array(identity, np.int32))
    private = len(identity) // 2 if named else None
    sizes = {"careless": careless, "controls": controls, "held_out": held_out}
    job = study(seed=seed, split={"private": private, **sizes})
    try:
        rows = common.split(job, source)
    except InputError:
        reject()  # too few people for these sizes
    who = {name: set(source.identity[value]) for name, value in rows.items()}
    assert not who["careful"] & (who["controls"] | who["held_out"] | who["left_out"])
    assert not who["controls"] & who["held_out"]
    assert who["left_out"] <= who["controls"]
    assert not who["private"] & who["reference"]
    assert set(rows["careless"]) <= set(rows["careful"])
    assert set(rows["reference"]) <= set(rows["careful"])
    assert rows["private"][0] == rows["careless"][0] == rows["careful"][0]
    if named:
        assert source.index[rows["private"]].tolist() == [private]
    covered = np.concatenate([rows[name] for name in ("careful", "controls", "held_out", "left_out")])
    assert sorted(covered) == list(range(len(source)))


def patients(tmp_path):
    """Three records a person, whose name is a number that must not be found again."""
    rng = np.random.default_rng(0)
    name = np.array([f"MRN{7_000_000 + i // 3}" for i in range(3 * PEOPLE)])
    images = rng.integers(0, 256, (3 * PEOPLE, 8, 8), dtype=np.uint8)
    file = tmp_path / "set.npz"
    np.savez(file, images=images, labels=np.arange(3 * PEOPLE) % 2, patient=name)
    return {"data": {"source": "npz", "params": {"path": str(file), "size": 6}}}


def score_job(tmp_path):
    return study(**patients(tmp_path), split={"private": None, "careless": 10, "controls": 4, "held_out": 10})


def check_written(root, apart):
    split, data = (json.loads((root / name).read_text()) for name in ("split.json", "data.json"))
    assert set(data["people"]) == set(split)
    by_number = {}
    for role, numbers in split.items():
        assert len(numbers) == len(data["people"][role])
        for number, name in zip(numbers, data["people"][role], strict=True):
            assert by_number.setdefault(number // 3, name) == name  # one pseudonym a person, whatever the role
    assert len(set(by_number.values())) == PEOPLE
    for one in apart:
        for other in apart:
            assert one == other or not set(data["people"][one]) & set(data["people"][other])
    written = "".join(path.read_text() for path in root.rglob("*.json"))
    assert "MRN" not in written
    assert "700000" not in written
    assert data["shape"] == [6, 6, 1]
    assert "size: 6 x 6" in data["preparation"][0]
    return set(by_number.values())


def test_what_a_score_study_writes_of_people(tmp_path):
    found = []
    for name in ("a", "b"):
        job = score_job(tmp_path)
        common.load_roles(job, Workdir(tmp_path / name, job))
        found.append(check_written(tmp_path / name, ("careful", "controls", "held_out")))
    assert not found[0] & found[1]  # another run, another salt


def test_what_a_private_copy_writes_of_people(tmp_path):
    job = settings_kinds.parse(changed_config("digits_cadp", patients(tmp_path)))
    parts = cadp_study.load_parts(job, Workdir(tmp_path / "a", job))
    check_written(tmp_path / "a", ("public", "private", "test"))
    who = [set(part.identity) for part in (parts.public, parts.private, parts.test)]
    assert not who[0] & who[1]
    assert not who[1] & who[2]
    assert not who[0] & who[2]


def test_records_of_unknown_people_are_written_without_pseudonyms(tmp_path):
    job = study()
    common.load_roles(job, Workdir(tmp_path, job))
    assert json.loads((tmp_path / "data.json").read_text())["people"] is None


def _reordered(images, labels):
    order = np.random.default_rng(3).permutation(len(images))
    return images[order], labels[order]


def _one_more(images, labels):
    return np.concatenate([images, images[:1] // 2]), np.append(labels, labels[:1])


def _one_pixel(images, labels):
    images = images.copy()
    images[-1, 0, 0] ^= 1
    return images, labels


def _one_label(images, labels):
    labels = labels.copy()
    labels[0] = 1 - labels[0]
    return images, labels


CHANGES = {"reordered": _reordered, "one more": _one_more, "one pixel": _one_pixel, "one label": _one_label}
STUDIES = {
    "digits": (
        {"split": {"private": None, "careless": 10, "controls": 4, "held_out": 10, "canaries": 8}},
        common.load_roles,
    ),
    "digits_cadp": ({}, cadp_study.load_parts),
    "digits_release": ({"marks.private": 4, "marks.controls": 2}, joined_study.load_sets),
}


def written(file, change=None):
    rng = np.random.default_rng(0)
    sets = rng.integers(0, 256, (400, 8, 8), dtype=np.uint8), np.arange(400) % 2
    images, labels = sets if change is None else CHANGES[change](*sets)
    np.savez(file, images=images, labels=labels)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", STUDIES)
def test_a_source_that_changes_between_stages_is_refused(tmp_path, kind, change):
    """Whoever was trained on would count as held out otherwise. The same records go on, wherever the file lies."""
    file, (changes, load) = tmp_path / "set.npz", STUDIES[kind]
    data = {
        "source": "npz",
        "params": {
            "path": str(file),
        },
    }
    job = settings_kinds.parse(changed_config(kind, {"data": data, **changes}))
    written(file)
    load(job, Workdir(tmp_path / "run", job))
    before = (tmp_path / "run" / "data.json").read_text()
    load(job, Workdir(tmp_path / "run", job))
    written(file, change)
    with pytest.raises(InputError, match=r"set.*: holds other records now than when .*/run was made \(sets \w+"):
        load(job, Workdir(tmp_path / "run", job))
    assert (tmp_path / "run" / "data.json").read_text() == before
    load(job, Workdir(tmp_path / "another", job))


def test_every_set_of_a_score_study_is_held_to_what_it_was(tmp_path):
    """One grey level of one record is enough, and the message names the set that it belongs to."""
    job = study(split={"private": None, "careless": 10, "controls": 4, "held_out": 10, "canaries": 8})
    source = digits(120)
    rows = common.split(job, source)
    workdir = Workdir(tmp_path, job)
    common.load_roles(job, workdir, source)
    for name in ("private", "controls", "held_out", "canaries", "careless", "reference"):
        images = np.array(source.image)
        images[rows[name][-1], 3, 3] *= -1
        images[rows[name][-1], 0, 0] = 1.0
        expected = name if name in ("private", "controls", "held_out", "canaries") else "careful"
        with pytest.raises(InputError, match=rf"digits: holds other records .*\(sets [^)]*{expected}"):
            common.load_roles(job, workdir, source.with_images(images))


def test_a_workdir_without_digests_goes_on_and_has_them_then(tmp_path, caplog):
    """One of an earlier version; where its split shows that the source is another one, it is refused all the same."""
    job = study()
    workdir, file = Workdir(tmp_path, job), tmp_path / "data.json"
    common.load_roles(job, workdir, digits(1797))
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in whole.items() if name != "digests"}))
    with pytest.raises(InputError, match="digits: holds other records now"):
        common.load_roles(job, workdir, digits(1700))
    with caplog.at_level("INFO"):
        common.load_roles(job, workdir, digits(1797))
    assert "no digest of" in caplog.text
    assert json.loads(file.read_text()) == whole
    images = np.array(digits(1797).image)
    images[:, 0, 0] = 1.0
    with pytest.raises(InputError, match="digits: holds other records now"):
        common.load_roles(job, workdir, digits(1797).with_images(images))


def test_pseudonyms_tell_people_apart_and_are_new_each_time():
    one, two = (people.pseudonyms(np.array([5, 7, 5, 9])) for _ in range(2))
    assert one[0] == one[2]
    assert len(set(one)) == 3
    assert not set(one) & set(two)
    assert all(len(name) == 16 for name in one)


def test_missing_data_end_with_the_instruction_and_bind_no_workdir(tmp_path):
    data = {"source": "npz", "params": {"path": str(tmp_path / "no.npz")}, "obtain": "Get it\n  from the library."}
    job = study(data=data)
    with pytest.raises(MissingDataError, match=r"no\.npz does not exist; .*\. Get it from the library\.$"):
        run.run(job, tmp_path / "run", "train")
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingDataError, match="Get it from the library"):
        reading.load(job.data)
    with pytest.raises(MissingDataError, match=r"path is None; .*Get it"):
        reading.require(dataclasses.replace(job.data, params={"path": None}))


def test_a_run_that_came_to_nothing_binds_no_workdir(tmp_path):
    job = study()
    Workdir(tmp_path, job)
    other = dataclasses.replace(job, seed=job.seed + 1)
    assert Workdir(tmp_path, other).read_json(tmp_path / "config.json")["seed"] == job.seed + 1
    (tmp_path / "ledger.jsonl").touch()
    with pytest.raises(InputError, match=r"config\.seed"):
        Workdir(tmp_path, job)


def test_what_decides_no_number_may_change(tmp_path):
    job = study()
    Workdir(tmp_path, job).write_json(tmp_path / "timings.json", {})
    other = dataclasses.replace(
        job,
        data=dataclasses.replace(job.data, obtain="elsewhere"),
        outputs=settings.Outputs(grid_every=10),
        audit=dataclasses.replace(job.audit, memory_gb=0.5, chunk=7),
        profile=3,
    )
    assert Workdir(tmp_path, other).config["profile"] == 3
    deciding = dataclasses.replace(job, audit=dataclasses.replace(job.audit, gamma=0.25))
    with pytest.raises(InputError, match=r"config\.audit\.gamma is 0\.05 there and 0\.25 here"):
        Workdir(tmp_path, deciding)
    with pytest.raises(InputError, match=r"config\.outputs\.png"):
        settings.Outputs(png=-1)
    with pytest.raises(InputError, match=r"config\.profile"):
        dataclasses.replace(job, profile=-1)
