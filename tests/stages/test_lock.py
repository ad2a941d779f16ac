"""One run at a time in a workdir: the second is told so in one line, and nothing of the first is touched."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import changed_config, launch

from diffusion_privacy import settings_kinds
from diffusion_privacy.errors import InputError
from diffusion_privacy.stages import lock, run
from diffusion_privacy.stages.workdir import Workdir

UNUSABLE = r"run\.lock: expected a file that can be written and locked"
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 4711 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_run(workdir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of ``workdir`` as a run would."""
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(workdir / lock.FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def files_of(workdir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_a_workdir_that_another_run_works_in_is_refused_until_that_one_ends(tmp_path):
    study = settings_kinds.parse(changed_config("digits", {}))
    with another_run(tmp_path) as process:
        before = files_of(tmp_path)
        with pytest.raises(InputError, match=r"in use by another run \(process 4711 on elsewhere\)") as refused:
            run.run(study, tmp_path, "report")
        assert str(refused.value).startswith(f"{tmp_path}: ")
        assert "\n" not in str(refused.value)
        assert files_of(tmp_path) == before
        # Killed, so that it had no chance to clean up.
        process.kill()
        process.wait()
        # Past the lock: what it misses now are the results of stages that never ran.
        with pytest.raises(InputError, match="expected this file from an earlier stage"):
            run.run(study, tmp_path, "report")


def test_it_is_free_again_after_a_run_and_after_a_fault(tmp_path):
    with lock.held(tmp_path), pytest.raises(InputError, match="in use by another run"), lock.held(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
        raise ZeroDivisionError
    with lock.held(tmp_path):
        # A run may make several of these, and tests and examples do so beside one.
        study = settings_kinds.parse(changed_config("digits", {}))
        Workdir(tmp_path, study)
        Workdir(tmp_path, study)


def test_a_lock_binds_no_workdir(tmp_path):
    for seed in (0, 1):
        with lock.held(tmp_path):
            Workdir(tmp_path, settings_kinds.parse(changed_config("digits", {"seed": seed})))
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog, number):
    def none(handle: int, how: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    with caplog.at_level(logging.WARNING), lock.held(tmp_path):
        pass
    assert "a second run in this workdir would not be noticed" in caplog.text


def test_any_other_fault_of_the_file_is_one_line(tmp_path, monkeypatch):
    def broken(handle: int, how: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(InputError, match=UNUSABLE), lock.held(tmp_path):
        pytest.fail("it went on")
    monkeypatch.undo()
    (tmp_path / lock.FILE).unlink()
    (tmp_path / lock.FILE).mkdir()
    with pytest.raises(InputError, match=UNUSABLE), lock.held(tmp_path):
        pytest.fail("it went on")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "digits_cadp", "digits_release"])
def test_the_launcher_ends_with_2_and_one_line(tmp_path, name):
    with another_run(tmp_path):
        done = launch(f"--config=configs/{name}.py", f"--workdir={tmp_path}", "--mode=report")
        left = files_of(tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert f"{tmp_path}: in use by another run" in lines[0]
    assert set(left) == {lock.FILE}
