"""The job templates: they parse, and every flag and config in them exists."""

import ast
import importlib
import re
import signal
import subprocess
import time

import pytest
from launching import ROOT

from diffusion_privacy import settings_kinds
from diffusion_privacy.stages.run import _BY_KIND

yaml = pytest.importorskip("yaml")


def flags_of_launch() -> set[str]:
    """Names of the flags that launch.py defines, read from its text; absl would not have them defined twice."""
    tree = ast.parse((ROOT / "launch.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return {
        node.args[0].value
        for node in calls
        if node.func.attr.startswith("DEFINE_") and isinstance(node.args[0], ast.Constant)
    }


def check(args: list[str]) -> None:
    """Every argument is a flag of launch.py, or sets a field that the named config has to a value that it takes."""
    given = dict(arg.removeprefix("--").split("=", 1) for arg in args)
    name = given["config"].removeprefix("configs/").removesuffix(".py").replace("/", ".")
    config = importlib.import_module(f"configs.{name}").get_config()
    for flag, value in given.items():
        if not flag.startswith("config."):
            assert flag in flags_of_launch(), flag
            continue
        *parents, last = flag.split(".")[1:]
        node = config
        for parent in parents:
            node = node[parent]
        assert last in node, flag
        node[last] = int(value) if value.isdigit() else value
    study = settings_kinds.parse(config.to_dict())
    assert given.get("mode", "study") in ("study", *_BY_KIND[type(study)])


def test_the_flags_are_found():
    assert {"config", "workdir", "mode", "coordinator", "num_processes", "process_id"} <= flags_of_launch()


def test_kubernetes():
    service, job = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert service["spec"]["clusterIP"] == "None"
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    [container] = pod["containers"]
    check(container["args"])
    given = dict(arg.removeprefix("--").split("=", 1) for arg in container["args"])
    assert int(given["num_processes"]) == spec["completions"]
    assert given["process_id"] == "$(JOB_COMPLETION_INDEX)"
    # The host name of an indexed job's first pod, in the headless service.
    host, port = given["coordinator"].split(":")
    assert host == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert port.isdigit()
    [rule] = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    for arg in container["args"]:
        for path in re.findall(r"=(/\w+)", arg):
            assert path in mounted, arg
    assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in container["volumeMounts"]}


def test_no_private_data_and_no_run_is_copied_into_the_image():
    """README has the workdir below the checkout, configs the data; a ledger holds hashes of private records."""
    left_out = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")}
    assert {"data", "runs", "**/*.npz", "**/*.jsonl", "**/*NEVER_PUBLISH*", ".git", ".venv"} <= left_out
    assert "COPY . ." in (ROOT / "deploy" / "Dockerfile").read_text()


def test_slurm():
    text = (ROOT / "deploy" / "slurm.sbatch").read_text()
    parsed = subprocess.run(["bash", "-n", str(ROOT / "deploy" / "slurm.sbatch")], capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE)
    assert {"nodes", "ntasks", "signal", "requeue", "output"} <= {name for name, _ in options}
    used = set(re.findall(r"--(\w+)=", re.search(r"^srun .*launch\.py (.*)", text, re.MULTILINE)[1]))
    assert used == {"config", "workdir", "mode"}
    assert used <= flags_of_launch()
    example = re.search(r"sbatch deploy/slurm\.sbatch (\S+) \S+ (.*)", text)
    check([f"--config={example[1]}", *example[2].split()])


def cluster(place, srun: str) -> dict[str, str]:
    """An environment in which srun does as it is told and scontrol notes what it is asked."""
    for name, body in (("srun", f'echo "$@" > {place}/asked\n{srun}'), ("scontrol", f"echo $@ > {place}/queued")):
        tool = place / name
        tool.write_text(f"#!/bin/bash\n{body}\n")
        tool.chmod(0o755)
    return {"PATH": f"{place}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}


SCRIPT = ["bash", str(ROOT / "deploy" / "slurm.sbatch"), "c.py", "w", "--config.seed=1"]


@pytest.mark.parametrize(("status", "again"), [(0, False), (75, True), (2, False)])
def test_slurm_queues_a_job_again_exactly_where_it_saved(tmp_path, status, again):
    done = subprocess.run(SCRIPT, env=cluster(tmp_path, f"exit {status}"), capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "--config=c.py --workdir=w --mode=study --config.seed=1" in (tmp_path / "asked").read_text()
    assert (tmp_path / "queued").exists() is again
    if again:
        assert (tmp_path / "queued").read_text() == "requeue 7\n"


def test_slurm_is_ready_for_the_signal_before_the_step_starts():
    """A step that is up before the script could pass a signal on was lost with it, now and then."""
    lines = (ROOT / "deploy" / "slurm.sbatch").read_text().splitlines()
    first = {word: next(i for i, line in enumerate(lines) if line.startswith(word)) for word in ("trap ", "srun ")}
    assert first["trap "] < first["srun "]


def test_slurm_passes_the_signal_on_and_waits_for_the_state(tmp_path):
    step = f"trap 'sleep 0.3; exit 75' TERM; touch {tmp_path}/up; while true; do sleep 0.05; done"
    job = subprocess.Popen(SCRIPT, env=cluster(tmp_path, step), stdout=subprocess.DEVNULL)
    while not (tmp_path / "up").exists():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 75
    assert (tmp_path / "queued").read_text() == "requeue 7\n"
