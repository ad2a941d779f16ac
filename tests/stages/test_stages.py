"""The study end to end on few steps: files, resuming, refusals. What it finds is judged in test_digits_job."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from launching import ROOT, changed_config, environment, launch
from scipy import stats

from diffusion_privacy import settings, settings_kinds
from diffusion_privacy.anonymity import verdict
from diffusion_privacy.anonymity.intervals import rate
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import schema
from diffusion_privacy.stages import audit as audit_stage
from diffusion_privacy.stages import lock, run
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages import train as train_stage

pytestmark = pytest.mark.lightly_compiled

TINY = {
    "score.training.steps": 30,
    "score.training.warmup_steps": 5,
    "score.training.log_every": 10,
    "score.training.checkpoint_every": 10,
    "score.network.params.hidden": 32,
    "score.network.params.depth": 1,
    "sampler.steps": 10,
    "detector.training.steps": 60,
    "detector.training.log_every": 20,
    "detector.network.channels": 8,
    "detector.network.max_channels": 8,
    "detector.negatives": 200,
    "detector.false_positive_rate": 0.01,
    "detector.positives": 32,
    "audit.samples.careless": 100,
    "audit.samples.careful": 100,
    "audit.h_levels": 5,
    "audit.h_draws": 16,
    "audit.subspace_draws": 100,
    "audit.subspace_max_draws": 100,
    "audit.chunk": 64,
    "audit.likelihood_records": 4,
    "audit.baselines": ("authpct", "one_run"),
    "audit.estimators": ("counterfactual",),
    "audit.pairs": 100,
    "audit.screen.top": 3,
    "audit.screen.finalists": 2,
    "split.canaries": 16,
}


def _raw(changes=None):
    return changed_config("digits", {**TINY, **(changes or {})})


def _study(changes=None):
    return settings.parse(settings.Study, _raw(changes))


def _flags(changes=None):
    return [f"--config.{path}={value}" for path, value in {**TINY, **(changes or {})}.items()]


def _assert_refused(result, *words):
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines[0]


def test_split_keeps_people_apart_and_the_private_record_in_both_models():
    study = _study()
    from diffusion_privacy.data import sources

    source = sources.load("digits")
    people = np.arange(len(source)) // 3
    import dataclasses

    source = dataclasses.replace(source, identity=people.astype(np.int32))
    rows = common.split(study, source)
    private = rows["private"][0]
    assert private in rows["careless"]
    assert private in rows["careful"]
    assert people[private] not in people[rows["reference"]]
    assert set(rows["careless"]) <= set(rows["careful"])
    held = set(people[rows["controls"]]) | set(people[rows["held_out"]])
    assert not held & set(people[rows["careful"]])
    assert not set(rows["controls"]) & set(rows["held_out"])
    left_out = np.setdiff1d(rows["canaries"], rows["planted"])
    covered = np.concatenate([rows["careful"], rows["controls"], rows["held_out"], left_out])
    # Of a canary's person the other records are in no set.
    assert len(set(covered)) == len(covered) == len(source) - 2 * 16


def test_canaries_are_in_every_training_set_by_their_coins_and_twins_lack_one_person():
    study = _study({"split.canaries": 64})
    from diffusion_privacy.data import sources

    rows = common.split(study, sources.load("digits"))
    canaries, planted = set(rows["canaries"]), set(rows["planted"])
    # Binomial(64, ½) is outside with probability 2e-4.
    assert planted < canaries
    assert 18 <= len(planted) <= 46
    for name in ("careless", "careful", "reference", "careless_twin"):
        assert canaries & set(rows[name]) == planted
    for model, twin in common.TWINS.items():
        assert set(rows[model]) - set(rows[twin]) == set(rows["private"])
    assert len(rows["careless"]) == 64 + len(planted)
    assert common.trained(study) == ["careless", "careful", "reference", "careless_twin"]
    assert common.trained(_study({"audit.estimators": ()})) == ["careless", "careful", "reference"]
    with pytest.raises(InputError, match=r"config\.split\.canaries: expected fewer than \d+ people"):
        common.split(_study({"split.canaries": 1697}), sources.load("digits"))
    for changes in ({"split.canaries": 5}, {"split.canaries": 0}):
        with pytest.raises(InputError, match=r"config\.split\.canaries: expected"):
            _study(changes)
    with pytest.raises(InputError, match=r"config\.audit\.pairs"):
        _study({"audit.pairs": 9})


def test_a_private_record_can_be_named_and_must_exist():
    from diffusion_privacy.data import sources

    source = sources.load("digits")
    rows = common.split(_study({"split.private": 42}), source)
    assert source.index[rows["private"]].tolist() == [42]
    with pytest.raises(InputError, match=r"config\.split\.private"):
        common.split(_study({"split.private": 99_999}), source)
    with pytest.raises(InputError, match=r"config\.split"):
        common.split(_study({"split.careless": 1797}), source)


@pytest.mark.parametrize("identity", ["classifier", "embedding"])
def test_the_largest_number_of_fingerprints_reaches_the_identity_task(tmp_path, identity):
    study = _study({"detector.most_fingerprints": 1, "detector.identity": identity})
    roles = common.load_roles(study, run.Workdir(tmp_path, study))
    task = train_stage._identity_task(study, roles, roles.train["careful"])
    assert task.most == 1
    with pytest.raises(InputError, match=r"config\.detector\.most_fingerprints: expected 0 or more, got -1"):
        _study({"detector.most_fingerprints": -1})


@pytest.mark.slow
def test_study_end_to_end_then_no_work(tmp_path):
    work = tmp_path / "run"
    # Thresholds of barely trained detectors may miss every positive; that is refused, not glossed over.
    first = launch("--config=configs/digits.py", f"--workdir={work}", *_flags({"detector.training.steps": 300}))
    assert first.returncode == 0, first.stderr
    assert "tpu" not in first.stderr.lower()
    release = schema.read(work / "report" / "release.json")
    assert set(release["models"]) == {"careless", "careful"}
    for model in release["models"].values():
        assert [r["role"] for r in model["records"]] == ["private", "control", "control", "control"]
        assert all("E7 with and without the record" in {e["name"] for e in r["estimators"]} for r in model["records"])
        (one_run,) = (row for row in model["baselines"] if row["name"].startswith("one_run"))
        assert one_run["value"] == one_run["lower"] >= 0
        assert one_run["upper"] is None
        assert [row["rank"] for row in model["screening"]["listed"]] == [1, 2, 3]
        assert model["screening"]["records"] == model["n_train"]
    page = (work / "report" / "index.html").read_text()
    assert release["answer"].split(";")[0] in page
    assert json.loads((work / "likelihood.json").read_text())["careful"]["held_out"]["n"] == 4
    untouched = [p for p in work.rglob("*") if p.is_file() and "report" not in p.parts and p.name != lock.FILE]
    before = {p: p.stat().st_mtime_ns for p in untouched}
    second = launch("--config=configs/digits.py", f"--workdir={work}", *_flags({"detector.training.steps": 300}))
    assert second.returncode == 0, second.stderr
    assert {p: p.stat().st_mtime_ns for p in untouched} == before
    other = launch("--config=configs/digits.py", f"--workdir={work}", *_flags({"seed": 1}))
    _assert_refused(other, "config.")
    assert {p: p.stat().st_mtime_ns for p in untouched} == before


@pytest.mark.slow
def test_sigterm_saves_and_the_next_start_goes_on(tmp_path):
    flags = ["--config=configs/digits.py", "--mode=train", *_flags({"score.training.steps": 400})]
    args = [sys.executable, "launch.py", "--compilation_cache=", *flags, f"--workdir={tmp_path / 'a'}"]
    process = subprocess.Popen(args, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "careless: step 10/" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=120) == 75, rest
    assert "start it again" in rest
    metrics = tmp_path / "a" / "train" / "careless" / "metrics.csv"
    assert metrics.exists()
    assert not (tmp_path / "a" / "train" / "done.json").exists()


def test_sigterm_outside_training_ends_with_the_status_that_means_again(monkeypatch, capsys):
    import types

    import launch as program

    def audit(workdir):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        except Exception as error:
            # As the readers of checkpoints and given models do with whatever a library raises.
            raise InputError("a file that cannot be read") from error
        raise AssertionError("went on")

    monkeypatch.setattr(program, "_run", audit)
    monkeypatch.setattr(program, "_WORKDIR", types.SimpleNamespace(value="x"))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        program.main([])
    assert stopped.value.code == 75
    assert capsys.readouterr().err == "stopped by SIGTERM; start it again to go on\n"
    assert signal.getsignal(signal.SIGTERM) is before


NONE = (["--config=configs/none.py"], ["--config", "configs/none.py"], ["--config=configs/none.py", "--config.seed=1"])
TYPO = 'expected a field of the config file, it has no stepz; did you mean "steps"?'


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config=configs/digits.py"], ["--workdir"]),
        (["--config=configs/digits.py", "--workdir="], ["--workdir is required"]),
        (["--workdir=x"], ["--config"]),
        *(([*flags, "--workdir=x"], ["e.g. configs/digits.py, got 'configs/none.py' (No such file"]) for flags in NONE),
        (["--config=", "--workdir=x"], ["--config: expected a file", "empty string"]),
        (["--config=configs", "--workdir=x"], ["e.g. configs/digits.py, got 'configs' (Is a directory)"]),
        (["--config=configs/digits.py", "--workdir=x", "--mode=dance"], ["mode", "study"]),
        (["--config=configs/digits.py", "--workdir=x", "--config.score.training.stepz=3"], [TYPO]),
        (["--config=configs/digits.py", "--workdir=x", "--config.seed=soon"], ["seed"]),
        (["--config=configs/digits.py", "--workdir=x", "audit"], ["audit"]),
        (["--config=configs/digits.py", "--workdir=x", "--cpu_devices=-1"], ["cpu_devices"]),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_in_one_line(args, words):
    _assert_refused(launch(*args), *words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:", ["mine.py:1: SyntaxError: invalid syntax"]),
        ("x = 1", ["expected a file with a function get_config()"]),
        ("def get_config():\n    return {}['b']", ["mine.py:2: KeyError: 'b'"]),
        ("def get_config():\n    return undefined", ["mine.py:2: NameError"]),
        ("def get_config():\n    return open('gone')", ["mine.py: [Errno 2]", "gone"]),
        ("def get_config():\n    return 5", ["expected get_config() to return a ConfigDict, got 5"]),
    ],
)
def test_a_faulty_config_file_is_named_with_the_line(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    _assert_refused(launch(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"), "--config", *said)


def test_a_score_that_is_not_finite_ends_in_one_line(monkeypatch, capsys):
    import types

    import launch as program

    def broken(workdir):
        raise FloatingPointError("the score returned a value that is not finite while screening")

    monkeypatch.setattr(program, "_run", broken)
    monkeypatch.setattr(program, "_WORKDIR", types.SimpleNamespace(value="x"))
    with pytest.raises(SystemExit) as stopped:
        program.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: the score returned a value that is not finite while screening\n"


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "x: expected room to write (No space left on device); "),
        (ValueError("RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space left on device]"), "x: expected room to write "),
        (PermissionError(errno.EACCES, "Permission denied", "y/z.csv"), "y/z.csv: expected a file system that lets "),
        (OSError(errno.EROFS, "Read-only file system", "x/a"), "x/a: expected a file system that lets "),
    ],
)
def test_a_full_disk_and_a_missing_permission_end_in_one_line_wherever_they_show(monkeypatch, capsys, raised, said):
    import types

    import launch as program

    def full(workdir):
        try:
            raise raised
        except Exception as error:
            # Libraries wrap what happens in their threads.
            raise RuntimeError("a checkpoint could not be written") from error

    monkeypatch.setattr(program, "_run", full)
    monkeypatch.setattr(program, "_WORKDIR", types.SimpleNamespace(value="x"))
    with pytest.raises(SystemExit) as stopped:
        program.main([])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {said}")
    assert told.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    import types

    import launch as program

    def broken(workdir):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    monkeypatch.setattr(program, "_run", broken)
    monkeypatch.setattr(program, "_WORKDIR", types.SimpleNamespace(value="x"))
    with pytest.raises(FileNotFoundError):
        program.main([])


def test_help_names_the_modes():
    result = launch("--help")
    text = result.stdout + result.stderr
    assert "--mode" in text
    assert "study" in text
    assert "configs/digits.py" in text


def test_bad_inputs_are_named(tmp_path):
    missing = {"data": {"source": "npz", "params": {"path": str(tmp_path / "no.npz")}}}
    with pytest.raises(InputError, match=r"no\.npz"):
        run.run(settings.parse(settings.Study, {**_raw(), **missing}), tmp_path / "a", "train")
    with pytest.raises(InputError, match="source"):
        run.run(_study({"data.source": "nowhere"}), tmp_path / "b", "train")
    with pytest.raises(InputError, match=r"config\.score\.sde\.name"):
        run.run(_study({"score.sde.name": "xyz"}), tmp_path / "c", "train")
    with pytest.raises(InputError, match=r"fingerprint\.name: expected one of"):
        run.run(_study({"fingerprint.name": "xyz"}), tmp_path / "d", "train")
    with pytest.raises(InputError, match="mode"):
        run.run(_study(), tmp_path / "e", "dance")
    with pytest.raises(InputError, match="checkpoint"):
        run.run(_study(), tmp_path / "f", "sample")
    with pytest.raises(InputError, match=r"audit|samples|checkpoint"):
        run.run(_study(), tmp_path / "g", "report")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="file"):
        run.run(_study(), blocked / "run", "train")
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "config.json").write_text("{")
    (tmp_path / "h" / "timings.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json"):
        run.run(_study(), tmp_path / "h", "train")


def test_a_workdir_may_be_named_from_home(tmp_path, monkeypatch):
    """No shell expands ~ behind --workdir=; a folder of that name is one that somebody will remove."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="checkpoint"):
        run.run(_study(), Path("~/runs/a"), "sample")
    assert (tmp_path / "runs" / "a" / "config.json").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"detector.network.chanels": 8}, r"^config\.detector\.network\.chanels is not a field of 'classifier'"),
        ({"detector.network.channels": 8.5}, r"^config\.detector\.network\.channels must be a whole number"),
        ({"detector.perturbation.blur": 0.1}, r"config\.detector\.perturbation\.blur: unknown field"),
        ({"score.network.params.hidden": "32"}, r"^config\.score\.network\.params\.hidden must be a whole number"),
        ({"score.sde.params": {"beta_max": "20"}}, r"config\.score\.sde\.params: "),
        ({"score.sde.params": {"beta_max": -20.0}}, r"config\.score\.sde\.params: beta_max must be"),
        ({"score.sde": {"name": "ddpm", "params": {"beta_max": 20.0}}}, r"config\.score\.sde\.params: beta_max"),
        ({"sampler.kernel": "ddim"}, r"config\.sampler: kernel must be one of"),
        ({"score.network.params.dropout": 0.1}, r"^config\.score\.network\.params\.dropout: expected 0"),
    ],
)
def test_what_is_chosen_by_name_is_checked_before_anything_is_trained(tmp_path, changes, named):
    with pytest.raises(InputError, match=named):
        run.run(_study(changes), tmp_path, "train")
    assert not list(tmp_path.glob("train/*/metrics.csv"))


def test_a_fingerprint_that_does_not_fit_is_corrected_in_the_same_workdir(tmp_path):
    with pytest.raises(InputError, match=r"^config\.fingerprint: a disc .* expected a larger image"):
        run.run(_study({"fingerprint.params.radius": 20}), tmp_path, "train")
    with pytest.raises(InputError, match="checkpoint"):
        run.run(_study(), tmp_path, "sample")


def test_other_settings_in_the_same_workdir_are_refused(tmp_path):
    run.Workdir(tmp_path, _study()).write_json(tmp_path / "timings.json", {})
    with pytest.raises(InputError, match=r"config\.sampler\.steps is 10 there and 12 here"):
        run.Workdir(tmp_path, _study({"sampler.steps": 12}))
    other = settings_kinds.parse(changed_config("digits_cadp", {}))
    with pytest.raises(InputError, match=r"but config\.kind is None there and 'cadp' here"):
        run.Workdir(tmp_path, other)
    shown = _study({"report.show_private": False})
    assert run.Workdir(tmp_path, shown).config["report"]["show_private"] is False


# --- what a verdict is made of ----------------------------------------------------------------------------------------


def test_misses_are_allowed_for_at_the_limit_of_the_returns_seen_and_not_at_their_estimate():
    """3 of 1,000 draws and 18 of 20 returns: both limits by Clopper and Pearson, at the level of a part."""
    level = verdict.part_level(0.95)
    setup = SimpleNamespace(chain=SimpleNamespace(steps=5), level=level)
    calibration = SimpleNamespace(true_positive_rate=rate(18, 20, level))
    found = audit_stage.direct_result(setup, np.where(np.arange(1000) < 3, 1.0, -1.0), calibration)
    tail = (1 - level) / 2
    upper = stats.beta.ppf(1 - tail, 4, 997) / stats.beta.ppf(tail, 18, 3)
    assert found.estimate.upper == pytest.approx(upper)
    assert (found.estimate.level, found.estimate.network_calls) == (level, 5000)


@pytest.mark.parametrize("status", [verdict.LEAKS, verdict.CLEAN, verdict.OPEN])
def test_a_verdict_is_never_said_narrower_than_it_is(status):
    found = verdict.Verdict(status, 1e-3, 1.2789e-4, 2e-4, 3.4123e-4, 0.95, (), None, None)
    said = audit_stage.verdict_entry(found, "record")["sentence"]
    assert "3.5 in 10,000 images" in said
    assert ("1.2" in said) == (status != verdict.CLEAN)
