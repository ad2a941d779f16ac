"""The house rules that no linter knows: who may import whom, what must stay optional, and what no file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "diffusion_privacy"
NAME = PACKAGE.name

LEVELS = (
    ("types", "errors", "rounding"),
    ("data",),
    ("training",),
    ("networks", "diffusion", "flows"),
    ("anonymity", "mechanisms", "interop"),
    ("audits",),
    ("reports",),
    ("settings_latent",),
    ("settings",),
    ("settings_own",),
    ("settings_sweep",),
    ("settings_cadp",),
    ("settings_joined",),
    ("settings_kinds",),
    ("tasks",),
    ("stages",),
)
"""Left to right, as docs/architecture.md draws it. A room imports itself and what stands to its left, never a peer."""

RANK = {room: rank for rank, rooms in enumerate(LEVELS) for room in rooms}
MATHEMATICS = ("networks", "diffusion", "flows", "anonymity", "mechanisms")
FROM_TRAINING = (
    "training.rng",
    "training.gradients",
    "training.privacy",
    "training.sharding",
    "training.convolutions",
    "training.winograd",
    "training.platform",
    "training.programs",
)

OPTIONAL = (
    "tensorflow_datasets",
    "tensorflow",
    "ml_collections",
    "dp_accounting",
    "tensorboardX",
    "matplotlib",
    "sklearn",
    "PIL",
    "safetensors",
    "diffusers",
    "torch",
    "pydicom",
    "wandb",
)
"""An accelerator image may lack these; they are imported inside the functions that need them."""

LONGEST_MODULE = 450


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, module below the package) of every import of the package in ``source``, wherever it stands.

    ``from diffusion_privacy.data import records`` gives ``data.records``, whether that is a module or a name.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; the house names modules in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == NAME:
                yield node.lineno, name.removeprefix(NAME).lstrip(".")


def faults_of(where: str, source: str) -> list[str]:
    """What is wrong with the imports of module ``where`` (dotted, below the package)."""
    room = where.split(".")[0]
    faults = []
    for line, target in imports(source):
        other = target.split(".")[0]
        if other in ("", "__version__", room):
            continue
        message = f"{where}, line {line}: imports {target}"
        if other not in RANK or RANK[other] >= RANK[room]:
            faults.append(f"{message}, which does not stand to the left of {room}")
        if room in MATHEMATICS and other == "training" and not target.startswith(FROM_TRAINING):
            faults.append(f"{message}; of training only {', '.join(FROM_TRAINING)}")
        if room in ("anonymity", "mechanisms") and other == "networks":
            faults.append(f"{message}; it takes callables, never networks")
    return faults


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def test_every_room_has_its_place() -> None:
    rooms = {dotted(path).split(".")[0] for path in modules()} - {"__init__"}
    assert rooms <= set(RANK), f"give {rooms - set(RANK)} a place in LEVELS"


def test_imports_point_to_the_left() -> None:
    faults = [
        fault
        for path in modules()
        if path != PACKAGE / "__init__.py"
        for fault in faults_of(dotted(path), path.read_text())
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("data.records", "from diffusion_privacy.training.rng import stream"),
        ("training.loop", "import diffusion_privacy.networks.unet"),
        ("diffusion.sde", "from diffusion_privacy import flows"),
        ("anonymity.lanes", "def f():\n    from diffusion_privacy.networks import build"),
        ("anonymity.lanes", "from diffusion_privacy.training import loop"),
        ("mechanisms.release", "from diffusion_privacy.audits.epsilon import audit_release"),
        ("audits.epsilon", "from diffusion_privacy import stages"),
    ],
)
def test_a_wrong_import_is_seen(where: str, source: str) -> None:
    assert faults_of(where, source)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("anonymity.lanes", "from diffusion_privacy.training.rng import stream\nfrom diffusion_privacy import errors"),
        (
            "anonymity.tprime",
            "from diffusion_privacy.anonymity import lanes\nfrom diffusion_privacy.diffusion import chain",
        ),
        ("mechanisms.release", "import jax\nfrom diffusion_privacy import __version__"),
        ("stages", "from diffusion_privacy.networks.build import build\nfrom diffusion_privacy.reports import schema"),
    ],
)
def test_a_right_import_is_let_pass(where: str, source: str) -> None:
    assert not faults_of(where, source)


def test_no_module_is_long() -> None:
    files = [*modules(), *sorted((ROOT / "configs").rglob("*.py")), ROOT / "launch.py"]
    long = {
        str(f.relative_to(ROOT)): n for f in files if f.exists() and (n := f.read_text().count("\n")) > LONGEST_MODULE
    }
    assert not long, f"modules of more than {LONGEST_MODULE} lines: {long}"


_BLOCKER = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not to be imported here", name=name)

sys.meta_path.insert(0, Blocker())
for name in MODULES:
    importlib.import_module(name)
"""


def without_optional(names: list[str]) -> subprocess.CompletedProcess[str]:
    """Imports ``names`` in a process of its own in which nothing of `OPTIONAL` can be imported."""
    program = f"BLOCKED = {OPTIONAL!r}\nMODULES = {names!r}\n{_BLOCKER}"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_no_module_needs_the_optional_libraries_to_be_imported() -> None:
    names = [f"{NAME}.{dotted(path).removesuffix('.__init__')}" for path in modules() if path.parent != PACKAGE]
    done = without_optional(names)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_blocker_blocks() -> None:
    done = without_optional(["PIL"])
    assert done.returncode != 0
    assert "PIL is not to be imported here" in done.stderr


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to it is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


# Written in pieces, so that this file passes its own test.
_FORBIDDEN = {
    "path of one machine": re.compile(r"(?<![\w.~/-])/(?:work|root|Users|home/\w+)/"),
    "host of a package registry": re.compile(
        "|".join(["pypi" + r"\.org", "python" + r"hosted\.", "conda" + r"\.anaconda"])
    ),
    "unfinished merge": re.compile("^" + "<" * 7 + " |^" + ">" * 7 + " ", re.MULTILINE),
}


def test_no_file_names_a_machine_or_a_registry() -> None:
    faults = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        faults += [f"{path.relative_to(ROOT)}: {what}" for what, pattern in _FORBIDDEN.items() if pattern.search(text)]
    assert not faults, "\n".join(faults)


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'__version__ = "{version}"' in (PACKAGE / "__init__.py").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_module_stands_in_the_reference() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    named = set(re.findall(rf"^::: {NAME}\.(\w+)$", pages, re.MULTILINE))
    rooms = {dotted(path).split(".")[0] for path in modules()} - {"__init__"}
    assert named == rooms, f"docs/reference lacks {sorted(rooms - named)}, has {sorted(named - rooms)}"


def test_every_task_can_be_looked_up() -> None:
    from diffusion_privacy.tasks import TASKS

    bodies = [node for path in modules() for node in ast.parse(path.read_text()).body]
    classes = {node.name for node in bodies if isinstance(node, ast.ClassDef) and node.name.endswith("Task")}
    public = {name for name in classes if not name.startswith("_")} - {"Task"}
    assert {kind.__name__ for kind in TASKS.values()} == public


def test_the_commands_of_the_readme_are_single_lines_and_name_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in ("run-command", "test-command"):
        found = re.findall(rf"<!-- {name} -->\n```sh\n(.*?)\n```\n<!-- /{name} -->", readme, re.DOTALL)
        assert len(found) == 1, f"README.md: expected one block between the markers {name}"
        assert "\n" not in found[0], f"README.md: {name} is not one line"
        files = re.findall(r"(?<=[ =])[\w/]+\.(?:py|txt)\b", found[0])
        missing = [file for file in files if not (ROOT / file).exists()]
        assert not missing, f"README.md: {name} names {missing}"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def run_blocks(page: str) -> dict[str, object]:
    """Runs every python block of a page, each by itself; returns the names that the last one defined."""
    found = blocks(ROOT / page)
    assert found, f"{page}: no python block"
    for number, block in enumerate(found):
        names: dict[str, object] = {"__name__": "__main__"}
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_find_what_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    [block] = blocks(ROOT / "README.md")
    assert len([line for line in block.splitlines() if line]) <= 10
    q = run_blocks("README.md")["q"]
    assert q.status == "leaks"  # type: ignore[attr-defined]
    assert q.lower < 1 / 100 < q.upper  # type: ignore[attr-defined]
    assert "95%" in capsys.readouterr().out


@pytest.mark.slow
def test_the_estimators_one_by_one_find_what_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    # Keys are fixed; with other keys an interval of this level would miss the truth in one run of twenty.
    names = run_blocks("docs/own_model.md")
    for name in ("e1", "e2"):
        estimate = names[name].estimate  # type: ignore[attr-defined]
        assert estimate.reliable
        assert estimate.lower < 1 / 100 < estimate.upper
    assert "subspace" in capsys.readouterr().out


@pytest.mark.slow
def test_the_examples_of_the_extension_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/extending.md")
