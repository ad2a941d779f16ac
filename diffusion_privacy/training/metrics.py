"""Numbers of a run while it goes: a CSV file, TensorBoard, and lines that say how far it is."""

from __future__ import annotations

import csv
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_privacy.data import pictures
from diffusion_privacy.errors import InputError

_LOG = logging.getLogger(__name__)
STEP = "step"
_FLUSH_S = 10.0
"""How long TensorBoard's file may hold rows back. Each flush waits for the disk."""


class CsvLog:
    """One row for each logged step; a column that appears later is empty in the rows before it.

    Resuming at ``resume_step`` keeps the rows up to it and drops the later ones (and a half-written last line), which
    the resumed run writes again.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if _complete(row) and int(row[STEP]) <= resume_step]
        self._columns = [STEP]
        self._extend({name for row in self._rows for name in row}, list(self._rows[0]) if self._rows else [])
        self._rewrite()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a row and flushes it to the file."""
        row = {STEP: str(step), **{name: repr(float(value)) for name, value in values.items()}}
        self._rows.append(row)
        if self._extend(set(values), list(values)):
            self._rewrite()
            return
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerow(row)

    def _extend(self, names: set[str], order: list[str]) -> bool:
        new = [name for name in order if name in names and name not in self._columns]
        self._columns += new
        return bool(new)

    def _rewrite(self) -> None:
        temporary = self._path.with_name(self._path.name + ".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self._path)


def _complete(row: Mapping[str, Any]) -> bool:
    return None not in row and None not in row.values() and row.get(STEP, "").isdigit()


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """The columns of a metrics file as float64 arrays; NaN where a row has no value.

    Raises:
      InputError: there is no such file, or it is not a metrics file.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a metrics file written by training, found none")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or STEP not in reader.fieldnames:
            raise InputError(f"{path}: expected a CSV file with a column {STEP!r}")
        rows = [row for row in reader if _complete(row)]
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in reader.fieldnames}


class MetricsWriter:
    """Writes rows of metrics to ``metrics.csv`` and, where wanted and installed, to TensorBoard files."""

    def __init__(self, workdir: Path, *, resume_step: int, tensorboard: bool) -> None:
        self._csv = CsvLog(workdir / "metrics.csv", resume_step)
        self._tensorboard = _tensorboard(workdir / "tensorboard", resume_step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row; ``step`` is the number of updates made."""
        self._csv.write(step, values)
        if self._tensorboard is not None:
            # A row right after the first step has no rate yet, and a curve no place for it.
            self._tensorboard.write(step, {name: value for name, value in values.items() if not math.isnan(value)})

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds ``uint8[H, W, 1 or 3]`` to TensorBoard's file, where there is one; the CSV has no place for it.

        Raises:
          OSError: it cannot be brought to the disk.
        """
        if self._tensorboard is not None:
            self._tensorboard.picture(step, name, pixels)

    def close(self) -> None:
        """Writes what TensorBoard's file still lacks."""
        if self._tensorboard is not None:
            self._tensorboard.close()


class _EventFile:
    """TensorBoard's file, written by the thread that trains, so that a full disk ends training as it does for the CSV.

    tensorboardX's `SummaryWriter` writes in a thread of its own. An error ends that thread with a traceback that nobody
    waits for, and training then stands still for ever, ten numbers later, when the queue is full.

    Pictures go into the same file. One of their own would have the same name within a second, which is the time that
    tensorboardX names files by, and so take the place of the numbers.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._flushed = Event, -math.inf
        self._file = EventsWriter(str(folder / "events"))
        # TensorBoard hides what an interrupted run wrote after the checkpoint that is resumed.
        for what in ({"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)}):
            self._file.write_event(Event(step=resume_step + 1, wall_time=time.time(), **what))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            summary = scalar(name, float(value))
            self._file.write_event(self._event(step=int(step), wall_time=time.time(), summary=summary))
        if time.monotonic() - self._flushed >= _FLUSH_S:
            self._flush()

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        height, width, channels = pixels.shape
        image = Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=pictures.png(pixels)
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._file.write_event(self._event(step=int(step), wall_time=time.time(), summary=summary))
        # Rare and large: a disk without room for it is to be heard of at this step.
        self._flush()

    def _flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


def _tensorboard(folder: Path, resume_step: int) -> _EventFile | None:
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        _LOG.warning("tensorboardX is not installed: metrics go to metrics.csv only")
        return None
    return _EventFile(folder, resume_step)


class Progress:
    """Says how far a run is: steps, rate in steps/s and examples/s, time left.

    The rate counts from the end of the first step of this process, so that compilation does not enter it. Lines go to
    the log and, where the log does not show them, to a terminal; ``silent`` (all processes of a job but one) says none.
    """

    def __init__(
        self, name: str, *, start: int, total: int, batch_size: int, silent: bool = False, quiet_s: float = 15.0
    ) -> None:
        self._silent = silent
        self._name, self._total, self._batch_size, self._quiet_s = name, total, batch_size, quiet_s
        self._first_step, self._first_time = start, time.monotonic()
        self._last_step, self._last_time = start, self._first_time
        self._said = self._first_time
        self._say(f"{name}: step {start}/{total}, compiling the first step")

    def started(self, step: int) -> None:
        """Starts the clock; call when the first step is finished."""
        self._first_step, self._first_time = step, time.monotonic()
        self._last_step, self._last_time = step, self._first_time

    def rates(self, step: int) -> dict[str, float]:
        """Steps and examples per second since the last call (or `started`); NaN when no step lies between."""
        now = time.monotonic()
        steps, seconds = step - self._last_step, now - self._last_time
        self._last_step, self._last_time = step, now
        rate = steps / seconds if steps > 0 and seconds > 0 else math.nan
        return {"steps_per_second": rate, "examples_per_second": rate * self._batch_size}

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Says the step, these values and the time left."""
        elapsed, done = time.monotonic() - self._first_time, step - self._first_step
        shown = "".join(f"  {name} {value:.4g}" for name, value in values.items())
        left = ""
        if done > 0 and elapsed > 0:
            rate = done / elapsed
            eta = duration((self._total - step) / rate)
            left = f"  {rate:.3g} steps/s  {rate * self._batch_size:.4g} examples/s  ETA {eta}"
        self._say(f"{self._name}: step {step}/{self._total} ({100 * step // self._total} %){shown}{left}")
        self._said = time.monotonic()

    def tick(self, step: int) -> None:
        """Says a line if none has been said for ``quiet_s`` seconds."""
        if time.monotonic() - self._said >= self._quiet_s:
            self.line(step, {})

    def _say(self, line: str) -> None:
        if self._silent:
            return
        _LOG.info("%s", line)
        if not _LOG.isEnabledFor(logging.INFO) and sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. ``"1:02:03"`` or ``"2:03"``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
