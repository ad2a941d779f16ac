"""Devices and processes must not show in the numbers, and a job that loses a process must end and go on.

One machine plays several: processes of a job on it are real ones, joined by `jax.distributed`, with their own devices.
Tolerance: trained numbers agree to 2e-5, one of a thousand to 1e-4 (parameters are of order 1; sums over rows and
devices are made in another order, and where a gradient is almost 0 Adam enlarges its rounding), drawn images and
log-weights to 1e-4, counts exactly.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import distributed_program
import jax
import numpy as np
import pytest
from launching import ROOT, changed_config, environment

from diffusion_privacy import settings_kinds
from diffusion_privacy.errors import InputError
from diffusion_privacy.stages import lock, run
from diffusion_privacy.training import secret, sharding
from diffusion_privacy.training.metrics import read_csv

PATIENCE_S = 900
"""For a whole job on a loaded machine; nothing here takes a tenth of it on a quiet one."""
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
COUNTS = ("h_hits", "subspace_hits", "subspace_draws")


@contextlib.contextmanager
def job(
    commands: list[list[str]],
    folder: Path,
    cache: Path,
    devices: int = 1,
    launcher: Callable[[int], dict[str, str]] = lambda process: {},
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes with their output in ``folder/<i>.log``; whatever happens, none of them outlives the block."""
    env = environment() | {
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context((folder / f"{i}.log").open("wb")) for i in range(len(commands))]
        started = [
            subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=env | launcher(i), stdout=log, stderr=subprocess.STDOUT
            )
            for i, (command, log) in enumerate(zip(commands, logs, strict=True))
        ]
        try:
            yield started
        finally:
            for process in started:
                process.kill()
                process.wait()


def ended(processes: list[subprocess.Popen[bytes]], folder: Path) -> tuple[list[int], str]:
    """Exit statuses of all, and what they said."""
    deadline = time.monotonic() + PATIENCE_S
    statuses = [process.wait(max(deadline - time.monotonic(), 0.1)) for process in processes]
    return statuses, "\n".join(path.read_text(errors="replace")[-4000:] for path in sorted(folder.glob("*.log")))


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def program(folder: Path, processes: int, *, kill: bool = False) -> list[list[str]]:
    address = free_address()
    path = str(ROOT / "tests" / "distributed_program.py")
    return [[path, str(folder), address, str(processes), str(i), str(int(kill))] for i in range(processes)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "programs_of_jobs"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """All numbers on one device."""
    mesh = sharding.data_mesh(jax.devices()[:1])
    return distributed_program.everything(tmp_path_factory.mktemp("alone"), mesh)


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        if name in COUNTS:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
            if name.startswith(("whole", "split", "private")):
                apart = ~np.isclose(found[name], value, rtol=2e-5, atol=2e-5)
                assert np.mean(apart) <= 1e-3, f"{name}: {apart.sum()} of {apart.size} beyond 2e-5"


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_the_numbers_are_worth_comparing(alone) -> None:
    """Records come back and do not, levels differ, weights are used, training moves, a split state learns the same."""
    hits = alone["h_hits"]
    assert hits[:5, 0].min() > 0
    assert 0 < hits[5:].max() + hits[:5, 2].max() < hits[:5, 0].max()
    assert (alone["subspace_hits"] > 0).any()
    assert np.isfinite(alone["subspace_log"]).any()
    for name, value in alone.items():
        if name.startswith("whole"):
            np.testing.assert_allclose(alone[name.replace("whole", "split", 1)], value, rtol=2e-5, atol=2e-5)
    assert np.abs(alone["whole.params['out']['bias']"]).max() > 1e-3


@pytest.mark.slow
def test_8_devices_compute_what_1_does(tmp_path, cache, alone) -> None:
    with job(program(tmp_path, 1), tmp_path, cache, devices=8) as processes:
        statuses, said = ended(processes, tmp_path)
    assert statuses == [0], said
    assert_equal(dict(np.load(tmp_path / "numbers.npz")), alone)


@pytest.mark.slow
def test_2_processes_lose_one_stop_with_an_error_and_go_on_to_what_1_computes(tmp_path, cache, alone) -> None:
    with job(program(tmp_path, 2, kill=True), tmp_path, cache, devices=2) as processes:
        statuses, said = ended(processes, tmp_path)
    assert statuses[1] == -signal.SIGKILL, said
    assert statuses[0] not in (0, 2, 75), said
    saved = tmp_path / "whole" / "checkpoints"
    assert sorted(int(p.name) for p in saved.iterdir()) == [3, 6]
    before = {p: p.stat().st_mtime_ns for p in (saved / "6").rglob("*") if p.is_file()}
    with job(program(tmp_path, 2), tmp_path, cache, devices=2) as processes:
        statuses, said = ended(processes, tmp_path)
    assert statuses == [0, 0], said
    assert before == {p: p.stat().st_mtime_ns for p in before}, "it did not go on after step 6"
    assert_equal(dict(np.load(tmp_path / "numbers.npz")), alone)
    # One writer: no part of a checkpoint is another process's, and the rows of metrics come once.
    assert not list(tmp_path.rglob("*process_1*"))
    assert read_csv(tmp_path / "whole" / "metrics.csv")["step"].tolist() == [3, 6, 9]


@pytest.mark.slow
def test_4_processes_compute_what_1_does(tmp_path, cache, alone) -> None:
    with job(program(tmp_path, 4), tmp_path, cache) as processes:
        statuses, said = ended(processes, tmp_path)
    assert statuses == [0] * 4, said
    assert_equal(dict(np.load(tmp_path / "numbers.npz")), alone)


SMALL = {
    "audit.samples": 256,
    "audit.h_levels": 3,
    "audit.h_draws": 16,
    "audit.subspace_draws": 100,
    "audit.subspace_max_draws": 100,
    "audit.copies": 32,
    "audit.chunk": 64,
    "model.steps": 10,
    "records.stop": 1024,
}


def srun(process: int) -> dict[str, str]:
    """What SLURM tells process ``process`` of two, one a node; jax takes its port from the job's number."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }


def launched(workdir: Path, processes: int, more: dict[int, list[str]] | None = None) -> list[list[str]]:
    """The audit of the example's model by the launcher; ``more`` flags for some of the processes.

    Without ``more`` no process is told of the others.
    """
    flags = ["launch.py", "--config=configs/audit_own_model.py", f"--workdir={workdir}", "--compilation_cache="]
    flags += ["--cpu_devices=1", *[f"--config.{path}={value}" for path, value in SMALL.items()]]
    if more is None:
        return [flags] * processes
    address = free_address()
    joined = [f"--coordinator={address}", f"--num_processes={processes}"]
    return [[*flags, *joined, f"--process_id={i}", *more.get(i, [])] for i in range(processes)]


def numbers_of(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON tree with its place."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from numbers_of(item, f"{path}/{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from numbers_of(item, f"{path}/{i}")
    elif isinstance(value, int | float):
        yield path, float(value)


@pytest.mark.slow
def test_the_launcher_joins_2_processes_of_srun_into_one_study(tmp_path, cache) -> None:
    results = []
    for processes in (1, 2):
        workdir, said_in = tmp_path / str(processes), tmp_path / f"logs{processes}"
        with job(
            launched(workdir, processes), said_in, cache, launcher=srun if processes > 1 else lambda process: {}
        ) as started:
            statuses, said = ended(started, said_in)
        assert statuses == [0] * processes, said
        results.append(dict(numbers_of(json.loads((workdir / "audit" / "model.json").read_text()))))
        files = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
        assert {"config.json", "audit/model.json", "report/index.html", "report/summary.md", "timings.json"} <= files
        assert not [name for name in files if "partial" in name]
    assert results[1] == pytest.approx(results[0], rel=1e-4, abs=1e-6)
    # Only the first process speaks.
    assert "audit: done" in (tmp_path / "logs2" / "0.log").read_text()
    assert "audit: done" not in (tmp_path / "logs2" / "1.log").read_text()
    assert json.loads((tmp_path / "2" / "report" / "release.json").read_text())["device"]["count"] == 2


@pytest.mark.slow
def test_a_fault_of_one_process_ends_the_job(tmp_path, cache) -> None:
    wrong = {1: ["--config.records.private=(9999,)"]}
    with job(launched(tmp_path / "run", 2, wrong), tmp_path, cache) as started:
        statuses, said = ended(started, tmp_path)
    assert statuses[1] == 2, said
    assert statuses[0] not in (0, 75), said
    assert "config.records.private" in (tmp_path / "1.log").read_text()


@pytest.mark.slow
def test_both_processes_are_told_that_another_run_is_at_work_in_their_workdir(tmp_path, cache) -> None:
    workdir, one = tmp_path / "run", tmp_path / "one"
    with lock.held(workdir):
        with job(launched(workdir, 2, {}), one, cache) as started:
            statuses, said = ended(started, one)
        assert statuses == [2, 2], said
        for process in range(2):
            told = (one / f"{process}.log").read_text()
            assert f"error: {workdir}: in use by another run" in told
            assert "Traceback" not in told
        assert [path.name for path in workdir.iterdir()] == [lock.FILE]


def drawn_by(folder: Path, cache: Path, processes: int) -> tuple[list[int], list[dict], str]:
    """Statuses of a job of `distributed_secrets`, what each of its processes drew, and what they said."""
    path, address = str(ROOT / "tests" / "distributed_secrets.py"), free_address()
    for old in folder.glob("numbers_*.json"):
        old.unlink()
    commands = [[path, str(folder), address, str(processes), str(i)] for i in range(processes)]
    with job(commands, folder, cache) as started:
        statuses, said = ended(started, folder)
    return statuses, [json.loads(file.read_text()) for file in sorted(folder.glob("numbers_*.json"))], said


@pytest.mark.slow
def test_the_secret_is_drawn_by_the_first_process_for_all_and_outlives_a_restart(tmp_path, cache) -> None:
    statuses, found, said = drawn_by(tmp_path, cache, 2)
    assert statuses == [0, 0], said
    first, second = found
    assert first == second
    for name in ("fingerprint", "records", "noise", "order"):
        assert first["a"][name] != first["b"][name]
    # .3 of 400 records a step, to five standard deviations; another step draws others.
    assert all(75 < len(records) < 165 for records in first["a"]["records"])
    assert first["a"]["records"][0] != first["a"]["records"][1]
    # One file for each run, its owner's alone, and none that another process wrote; in no log.
    files = sorted(tmp_path.rglob(secret.FILE))
    assert [file.parent.name for file in files] == ["a", "b"]
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        assert json.loads(file.read_text())["secret"] not in "".join(p.read_text() for p in tmp_path.glob("*.log"))
    # It goes on from a checkpoint in "a", and in "b" from before the first one; by one process as well.
    (tmp_path / "fingerprint.json").write_text(json.dumps(first["a"]["fingerprint"]))
    for processes in (2, 1):
        statuses, again, said = drawn_by(tmp_path, cache, processes)
        assert statuses == [0] * processes, said
        assert again == [first] * processes
    # Lost: all are told, nobody waits for another, and none is drawn in its place.
    files[0].unlink()
    statuses, again, said = drawn_by(tmp_path, cache, 2)
    assert (statuses, again) == ([2, 2], []), said
    for process in range(2):
        told = (tmp_path / f"{process}.log").read_text()
        assert "expected the secret that this private run began with, found none" in told
    assert not files[0].exists()


@pytest.mark.slow
def test_the_launcher_tells_each_of_2_processes_that_a_private_copy_takes_one(tmp_path, cache) -> None:
    address, workdir = free_address(), tmp_path / "run"
    flags = ["launch.py", "--config=configs/digits_cadp.py", f"--workdir={workdir}", "--compilation_cache="]
    flags += [f"--coordinator={address}", "--num_processes=2"]
    with job([[*flags, f"--process_id={i}"] for i in range(2)], tmp_path, cache) as started:
        statuses, said = ended(started, tmp_path)
    assert statuses == [2, 2], said
    for process in range(2):
        told = (tmp_path / f"{process}.log").read_text()
        assert "expected one process for a private copy, got 2" in told
        assert "start it by one process, which uses all devices of its machine" in told
        assert "Traceback" not in told
    assert not workdir.exists()


def test_a_private_copy_is_made_by_one_process(tmp_path, monkeypatch) -> None:
    """Release noise is fresh on each, so that two would go on with different copies."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for name in ("digits_cadp", "diabetes_cadp", "digits_release"):
        study = settings_kinds.parse(changed_config(name, {}))
        with pytest.raises(InputError, match="expected one process for a private copy, got 2"):
            run.run(study, tmp_path)
    assert list(tmp_path.iterdir()) == []
