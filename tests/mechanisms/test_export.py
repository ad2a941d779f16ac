"""Folders that appear complete or not at all, whatever kills their writer."""

import pathlib
import signal
import subprocess
import sys

import pytest

from diffusion_privacy.mechanisms.export import complete_or_absent

KILLED = """
import os, pathlib, signal, sys
from diffusion_privacy.mechanisms import export
with export.complete_or_absent(pathlib.Path(sys.argv[1])) as folder:
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_text("private")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_one_of_that_name(tmp_path: pathlib.Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    with complete_or_absent(tmp_path / "out[1]"):
        assert (left / "images" / "0.png").exists(), "it belongs to another release"
    with complete_or_absent(tmp_path / "out") as folder:
        assert not left.exists()
        (folder / "whole").write_text("1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out[1]"]


def test_a_living_writer_is_left_alone(tmp_path: pathlib.Path) -> None:
    def give_up() -> None:
        with complete_or_absent(tmp_path / "out"):
            raise RuntimeError("no more")

    with complete_or_absent(tmp_path / "out") as first:
        with pytest.raises(RuntimeError, match="no more"):
            give_up()
        assert list(tmp_path.iterdir()) == [first]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
