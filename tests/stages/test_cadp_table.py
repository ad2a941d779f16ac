"""The study of a private table: what a config may say, what is refused, and the whole on few steps."""

from __future__ import annotations

import csv
import importlib
import json
import re

import numpy as np
import pytest
from launching import changed_config

from diffusion_privacy import settings_kinds
from diffusion_privacy.data.table_csv import read_csv
from diffusion_privacy.data.tables import Schema
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.table import row_hashes
from diffusion_privacy.reports import cadp_schema
from diffusion_privacy.settings_cadp import CadpTable
from diffusion_privacy.stages import cadp_audit, cadp_study, cadp_table_study, lock, run
from diffusion_privacy.stages.workdir import Workdir

pytestmark = pytest.mark.lightly_compiled

CONFIGS = ("diabetes_cadp", "breast_cancer_cadp", "adult_cadp", "heart_cadp")
COLUMNS = (
    {"name": "pay, gross", "kind": "numeric", "lower": 0.0, "upper": 100.0, "decimals": 1},
    {"name": "age", "kind": "integer"},
    {"name": " job", "kind": "categorical", "categories": ("nurse", "cook, chef", "none")},
    {"name": "smoker", "kind": "categorical", "categories": ("yes", "no")},
)
HEADER = [str(column["name"]) for column in COLUMNS]
TINY = {
    "data.source": "csv",
    # Shares of one size: one compiled program serves all.
    "split": {"public": 1 / 3, "private": 1 / 3, "test": 1 / 3},
    "columns.apart": ("smoker",),
    "columns.declared": COLUMNS,
    "flow.params": {"dense_depth": 1, "dense_width": 8},
    "flow.training.steps": 20,
    "flow.training.batch_size": 32,
    "flow.training.warmup_steps": 2,
    "flow.training.log_every": 10,
    "flow.training.checkpoint_every": 10,
    "release.epsilons": (1.0, 500.0),
    "release.total_epsilon": 600.0,
    "evaluation.target": "age",
    "evaluation.draws": 2,
    "attack.study_epsilons": (4000.0,),
    "attack.trials": 2000,
    "attack.release_repeats": 0,
}


def _write(path, rows=120, **cells):
    """A CSV file; ``cells`` are texts at (row, column)."""
    rng = np.random.default_rng(1)
    job, smoker = COLUMNS[2]["categories"], COLUMNS[3]["categories"]
    age = rng.integers(18, 90, rows)
    table = [[f"{min(99.0, a + rng.normal()):.1f}", str(a), job[rng.integers(3)], smoker[rng.integers(2)]] for a in age]
    for place, text in cells.items():
        row, column = (int(v) for v in place.removeprefix("at_").split("_"))
        table[row][column] = text
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *table])
    return path


def _study(path, changes=None, drop=()) -> CadpTable:
    config = changed_config("diabetes_cadp", {"data.params": {"path": str(path)}, **TINY, **(changes or {})})
    for name in drop:
        del config[name]
    found = settings_kinds.parse(config)
    assert isinstance(found, CadpTable)
    return found


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_a_table_study(name):
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    assert isinstance(settings_kinds.parse(config), CadpTable)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("flow.preprocess", "affine"),
        ("release.records_per_person", 2),
        ("columns.apart", ()),
        ("columns.noise", 1.0),
        ("columns.ranges", {"age": (1.0,)}),
        ("columns.declared", ({"name": "x", "kind": "odd"},)),
        ("data.source", "diabetes"),
        ("evaluation.draws", 1),
        ("evaluation.cells", 1),
        ("evaluation.dp_steps", -1),
        ("evaluation.dp_clip", 0.0),
        ("evaluation.level", 0.2),
    ],
)
def test_faults_are_named_in_one_line(tmp_path, path, value):
    where = "columns.declared" if path == "data.source" else path
    with pytest.raises(InputError, match=re.escape(f"config.{where}")) as caught:
        _study(tmp_path / "t.csv", {path: value})
    assert "\n" not in str(caught.value)


# --- refusals, before anything is computed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "cells", "words"),
    [
        ({}, {"at_6_1": ""}, r"t\.csv: row 7, column 'age' is missing \(''\); expected a value, or missing='drop'"),
        ({}, {"at_3_2": "driver"}, "row 4, column ' job' is 'driver'; expected one of 3 categories"),
        ({"columns.apart": ("smokes",)}, {}, r"config\.columns\.apart: the table has no column 'smokes'"),
        ({"columns.apart": ("age",)}, {}, "column 'age' is integer; expected a categorical column"),
        ({"columns.ranges": {"pay": (0.0, 1.0)}}, {}, r"config\.columns\.ranges\.pay: the table has no column 'pay'"),
        ({"evaluation.target": "wage"}, {}, r"config\.evaluation\.target: the table has no column 'wage'"),
        ({"columns.declared": ()}, {}, r"inferred from the private rows; expected config\.columns\.declared, or"),
        ({"data.params.missing": "median"}, {"at_6_1": ""}, r"config\.data\.params\.missing: 'median' makes a row"),
        ({"data.params.path": "none.csv"}, {}, r"config\.data\.params\.path: 'none\.csv' is no file; expected a table"),
        ({"columns.declared": COLUMNS[:3]}, {}, "expected the schema's"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_its_config_is_refused(tmp_path, changes, cells, words):
    settings = _study(_write(tmp_path / "t.csv", **cells), changes)
    with pytest.raises(InputError, match=words) as caught:
        run.run(settings, tmp_path / "run", "train")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "train").exists()


def _after_training(tmp_path, changes=None, trained_on="public"):
    """A workdir that says which rows the flow learnt from, without the flow."""
    settings = _study(_write(tmp_path / "t.csv"), changes)
    workdir = Workdir(tmp_path / "run", settings)
    rows = getattr(cadp_study.load_parts(settings, workdir), trained_on)
    workdir.write_json(workdir.path("train", "trained_on.json"), {"hashes": list(row_hashes(rows.table))})
    return settings


@pytest.mark.parametrize(
    ("changes", "trained_on", "words"),
    [
        ({}, "private", r"are in the flow's training set.*mechanism-only"),
        ({"release.total_epsilon": 5.0}, "public", r"ledger\.jsonl: 2 releases would bring ε to .* allows 5"),
        ({"release.delta": 0.1}, "public", "delta: expected less than 1/n"),
        ({}, "public", "expected a checkpoint, found none; train first"),
    ],
)
def test_a_release_that_may_not_be_made_is_refused_with_the_reason(tmp_path, changes, trained_on, words):
    settings = _after_training(tmp_path, changes, trained_on)
    with pytest.raises(InputError, match=words):
        run.run(settings, tmp_path / "run", "privatize")
    assert not (tmp_path / "run" / "releases").exists()
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "replace-record-and-condition"),
        ({"release.label_epsilon": 0.0, "columns.apart": ()}, "no columns apart"),
    ],
)
def test_a_relation_that_does_not_go_with_the_columns_is_refused(tmp_path, changes, words):
    changes = {"release.relation": "replace-record-same-public-condition", **changes}
    with pytest.raises(InputError, match=rf"config\.release\.relation.*{words}"):
        _study(_write(tmp_path / "t.csv"), changes)


def test_a_column_of_persons_keeps_them_in_one_share_and_is_no_column_of_the_table(tmp_path):
    file = _write(tmp_path / "t.csv")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    named = [[f"MRN{90_000 + i // 4}", *row] for i, row in enumerate(rows[1:])]
    with file.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([["patient", *rows[0]], *named])
    settings = _study(file, {"data.params": {"path": str(file), "person": "patient"}})
    parts = cadp_study.load_parts(settings, Workdir(tmp_path / "run", settings))
    assert parts.public.table.schema.header == tuple(HEADER)
    who = [set(part.identity.tolist()) for part in (parts.public, parts.private, parts.test)]
    assert sum(map(len, who)) == len(set.union(*who)) == 30
    written = json.loads((tmp_path / "run" / "data.json").read_text())
    assert len({name for part in written["people"].values() for name in part}) == 30
    assert "MRN" not in (tmp_path / "run" / "data.json").read_text()
    with pytest.raises(InputError, match="column 'nobody' of persons stands 0 times"):
        read_csv(file, person="nobody")


def test_a_table_that_changes_between_stages_is_refused(tmp_path):
    file = _write(tmp_path / "t.csv", at_9_1="41")
    settings = _study(file)
    workdir = Workdir(tmp_path / "run", settings)
    for _ in range(2):
        cadp_study.load_parts(settings, workdir)
    _write(file, at_9_1="42")
    with pytest.raises(InputError, match=r"holds other records now than when .*/run was made \(sets \w+\)"):
        cadp_study.load_parts(settings, workdir)


def test_rows_with_missing_values_are_left_out_only_where_the_config_says_so(tmp_path):
    path = _write(tmp_path / "t.csv", at_6_1="", at_9_2="?")
    settings = _study(path, {"data.params.missing": "drop"})
    parts = cadp_table_study.load_parts(settings)
    assert sum(map(len, parts)) == 118
    assert parts[0].table.dropped == 2


def test_equal_rows_are_never_in_two_shares(tmp_path):
    path = _write(tmp_path / "t.csv", rows=60)
    text = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*text, *text[1:]]), encoding="utf-8")
    parts = cadp_table_study.load_parts(_study(path))
    assert sum(map(len, parts)) == 120
    hashes = [set(row_hashes(part.table)) for part in parts]
    assert len(set.union(*hashes)) == sum(map(len, hashes))


def test_exchanging_a_row_moves_nobody(tmp_path):
    """The flow learns from the public rows without noise: which they are must not tell of a private row's values."""
    parts = cadp_table_study.load_parts(_study(_write(tmp_path / "t.csv")))
    row = int(parts[1].index[7])
    for number, age in enumerate(("21.3", "55.7", "98.1")):
        changed = _write(tmp_path / f"{number}.csv", **{f"at_{row}_0": age})
        for part, before in zip(cadp_table_study.load_parts(_study(changed)), parts, strict=True):
            np.testing.assert_array_equal(part.index, before.index)


@pytest.mark.parametrize("persons", [False, True])
def test_a_row_that_is_left_out_moves_nobody(tmp_path, persons):
    """Dealt over the rows that were kept, one missing value would move every row behind it by a place."""
    file = tmp_path / "t.csv"

    def parts(**gaps):
        _write(file, **gaps)
        if persons:
            head, *rows = file.read_text(encoding="utf-8").splitlines()
            text = [f"patient,{head}", *(f"{'' if i < 9 else i // 3},{row}" for i, row in enumerate(rows))]
            file.write_text("\n".join(text) + "\n", encoding="utf-8")
        params = {"path": str(file), "missing": "drop", **({"person": "patient"} if persons else {})}
        return cadp_table_study.load_parts(_study(file, {"data.params": params}))

    complete = parts()
    row = int(complete[1].index[7])
    for gaps in ({f"at_{row}_1": ""}, {"at_3_1": "?", f"at_{row}_1": ""}):
        left = {int(name.split("_")[1]) for name in gaps}
        for part, before in zip(parts(**gaps), complete, strict=True):
            assert part.index.tolist() == [i for i in before.index.tolist() if i not in left]
            assert row_hashes(part.table) == tuple(
                h for i, h in zip(before.index, row_hashes(before.table), strict=True) if i not in left
            )


def test_a_released_table_of_another_size_is_refused(tmp_path):
    private = cadp_table_study.load_parts(_study(_write(tmp_path / "t.csv")))[1]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *private.table.rows()[:-1]])
    with pytest.raises(InputError, match=rf"holds {len(private) - 1} rows; expected the {len(private)} that came in"):
        cadp_table_study.read_release(tmp_path, private)


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_csv_file_end_to_end_then_no_work(tmp_path):
    path, work = _write(tmp_path / "t.csv"), tmp_path / "run"
    settings = _study(path)
    run.run(settings, work, "train")
    run.run(settings, work, "privatize")
    private = cadp_study.load_parts(settings, Workdir(work, settings)).private
    _check_released(work / "releases" / "eps_1", private, path)
    run.run(settings, work)
    release = cadp_schema.read(work / "report" / "release.json")
    page = (work / "report" / "index.html").read_text(encoding="utf-8")
    assert release["answer"].split("(")[0][:40] in page
    assert "<script" not in page
    assert release["table"]["measure"] == "r2"
    assert not release["by_class"]
    links = {entry["name"]: entry["rank1"]["value"] for entry in release["linkage"]}
    assert links["no noise"] > 0.9
    _check_noise_follows_epsilon(work, private)
    untouched = {
        p: p.stat().st_mtime_ns
        for p in work.rglob("*")
        if p.is_file() and "report" not in p.parts and p.name != lock.FILE
    }
    run.run(settings, work)
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched
    # The same rows again, in another directory with the same ledger: refused, before a flow is trained in vain.
    again = _study(path, {"release.ledger": str(work / "ledger.jsonl"), "release.epsilons": (500.0,)})
    for mode in ("train", "study"):
        with pytest.raises(InputError, match="1 releases would bring ε"):
            run.run(again, tmp_path / "again", mode)
    assert not (tmp_path / "again" / "train").exists()
    assert not (tmp_path / "again" / "releases").exists()


def _check_released(folder, private, source):
    """Header, types, categories and number of rows of the source; a manifest without secrets; nothing else."""
    assert sorted(p.name for p in folder.parent.iterdir()) == ["eps_1", "eps_500"]
    assert sorted(p.name for p in folder.iterdir()) == ["data.csv", "manifest.json"]
    first = [f.read_text(encoding="utf-8").splitlines()[0] for f in (source, folder / "data.csv")]
    assert first[0] == first[1] == '"pay, gross",age, job,smoker'
    # Reading under the declared schema checks every type and category.
    table = read_csv(folder / "data.csv", schema=Schema(private.table.schema.columns))
    assert len(table) == len(private)
    with (folder / "data.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.reader(file))[1:]
    assert all(len(row[0].partition(".")[2]) == 1 and row[1].isdigit() for row in cells)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["count_in"] == manifest["count_out"] == len(private)
    assert manifest["latent_epsilon"] == pytest.approx(1.0, rel=1e-6)
    # Randomised response on the column apart is part of the whole.
    assert manifest["condition_epsilon"] == pytest.approx(1.0, rel=1e-6)
    assert 1.5 < manifest["epsilon"] <= 2.0
    assert not any(word in name for name in manifest for word in ("seed", "key"))


def _check_noise_follows_epsilon(work, private):
    """At ε = 500 pay follows its originals; smoker was kept with probability e/(e + 1) = .731, 5 standard errors."""
    columns = Schema(private.table.schema.columns)
    table = read_csv(work / "releases" / "eps_500" / "data.csv", schema=columns)
    assert np.corrcoef(table.data["pay, gross"], private.table.data["pay, gross"])[0, 1] > 0.5
    kept = np.mean(table.data["smoker"] == private.table.data["smoker"])
    assert abs(kept - 0.731) < 5 * np.sqrt(0.731 * 0.269 / len(private))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"columns.apart": (), "release.label_epsilon": 0.0, "release.mechanism": "laplace", "release.coarse": 3},
        {"release.label_epsilon": 0.0, "release.relation": "replace-record-same-public-condition"},
    ],
    ids=["one-hot", "published"],
)
def test_the_other_ways_of_categories(tmp_path, changes):
    settings = _study(_write(tmp_path / "t.csv"), {"release.epsilons": (1.0,), **changes})
    for mode in ("train", "privatize", "evaluate"):
        run.run(settings, tmp_path / "run", mode)
    workdir = Workdir(tmp_path / "run", settings)
    [private] = [a for a in workdir.read_json(tmp_path / "run" / "evaluation.json")["arms"] if a["kind"] == "dp-sgd"]
    assert private["epsilon"] == pytest.approx(1.0, rel=1e-6)
    parts = cadp_study.load_parts(settings, workdir)
    released = cadp_study.load_release(workdir, 1.0, parts.private)
    assert released.manifest["epsilon"] == pytest.approx(1.0, rel=1e-6)
    apart = settings.columns.apart
    assert any("smoker of every row" in fact for fact in released.manifest["public"]) == bool(apart)
    assert cadp_audit.by_class(settings, parts) == bool(apart)
    same = np.array_equal(released.records.table.data["smoker"], parts.private.table.data["smoker"])
    # A one-hot column of 40 rows at ε = 1 comes back unchanged with probability about 2^-40.
    assert same == bool(apart)
