"""Rows of metrics to Weights & Biases, where a config asks for it. Numbers and training settings only."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from diffusion_privacy.errors import InputError

OnLog = Callable[[int, dict[str, float]], None]
ID_FILE = "wandb_id.txt"


def require(project: str) -> None:
    """Raise `InputError` where a project is named and wandb is not installed."""
    if not project:
        return
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise InputError(
            f"config.outputs.wandb is {project!r}, but wandb is not installed; expected pip install wandb, or ''"
        ) from None


@contextlib.contextmanager
def rows(project: str, workdir: Path, name: str, settings: Mapping[str, Any]) -> Iterator[OnLog | None]:
    """What `training.loop.train` takes as ``on_log``; None without a project and on all processes but the first.

    A resumed run goes on in the same run there (its id is kept in ``workdir``). Neither pictures, console output, code,
    git state nor the machine's description are sent.

    Args:
      project: its name at Weights & Biases, or "".
      workdir: the folder of this model's training.
      name: what the run is called there.
      settings: shown beside it.

    Raises:
      InputError: wandb is not installed, or does not start (no account, no network, …).
    """
    require(project)
    if not project or jax.process_index() != 0:
        yield None
        return
    import wandb

    workdir.mkdir(parents=True, exist_ok=True)
    place = workdir / ID_FILE
    if not place.exists():
        place.write_text(secrets.token_hex(8))
    private = wandb.Settings(
        console="off", disable_git=True, save_code=False, x_disable_meta=True, x_disable_stats=True, silent=True
    )
    try:
        run = wandb.init(
            project=project, name=name, id=place.read_text(), resume="allow", dir=str(workdir),
            config=dict(settings), settings=private,
        )  # fmt: skip
    except Exception as error:
        # No account, no network, a wrong key: the user's to mend, whatever its type.
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"config.outputs.wandb: wandb does not start ({type(error).__name__}: {text}); expected wandb login, or "
            "WANDB_MODE=offline"
        ) from error
    try:
        yield lambda step, row: run.log(row, step=step)
    finally:
        run.finish()
