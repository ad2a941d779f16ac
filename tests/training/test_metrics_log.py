"""The CSV file through interruptions, TensorBoard, and the lines of progress."""

from __future__ import annotations

import errno
import io
import logging
from pathlib import Path

import numpy as np
import pytest
from training_toys import summaries

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import metrics


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    log = metrics.CsvLog(tmp_path / "m.csv", 0)
    log.write(1, {"loss": 0.1 + 0.2})
    log.write(2, {"loss": float("nan")})
    table = metrics.read_csv(tmp_path / "m.csv")
    assert table["loss"][0] == 0.1 + 0.2
    assert np.isnan(table["loss"][1])


def test_resuming_drops_later_and_half_written_rows(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    log = metrics.CsvLog(path, 0)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10, "norm": 1.0})
    with path.open("a") as file:
        file.write("40,4.")
    resumed = metrics.CsvLog(path, 20)
    resumed.write(30, {"loss": 7.0, "norm": 2.0})
    table = metrics.read_csv(path)
    np.testing.assert_array_equal(table["step"], [10, 20, 30])
    np.testing.assert_array_equal(table["loss"], [1, 2, 7])
    assert not list(tmp_path.glob("*.tmp"))


def test_columns_may_appear_later(tmp_path: Path) -> None:
    log = metrics.CsvLog(tmp_path / "m.csv", 0)
    log.write(1, {"loss": 1.0})
    log.write(1, {"eval/accuracy": 0.5})
    log.write(2, {"loss": 2.0})
    again = metrics.CsvLog(tmp_path / "m.csv", 2)
    again.write(3, {"eval/accuracy": 0.75, "loss": 3.0})
    table = metrics.read_csv(tmp_path / "m.csv")
    np.testing.assert_array_equal(table["loss"], [1, np.nan, 2, 3])
    np.testing.assert_array_equal(table["eval/accuracy"], [np.nan, 0.5, np.nan, 0.75])


def test_read_csv_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m\.csv: expected a metrics file"):
        metrics.read_csv(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="column 'step'"):
        metrics.read_csv(tmp_path / "m.csv")


def test_tensorboard_files_are_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboardX")
    writer = metrics.MetricsWriter(tmp_path, resume_step=0, tensorboard=True)
    with caplog.at_level("WARNING"):
        writer.write(1, {"loss": 1.0, "steps_per_second": float("nan")})
    assert not caplog.records
    writer.close()
    [events] = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()
    assert b"steps_per_second" not in events.read_bytes()
    metrics.MetricsWriter(tmp_path / ".", resume_step=1, tensorboard=False).close()
    assert len(metrics.read_csv(tmp_path / "metrics.csv")["step"]) == 1


class FullDisk:
    """A file that takes what is written and cannot bring it to the disk."""

    def write(self, data: bytes) -> None:
        pass

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        pass


def test_a_disk_that_is_full_for_tensorboard_is_said_where_training_hears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread of its own the error was a traceback only, and the eleventh number after it waited for ever."""
    record_writer = pytest.importorskip("tensorboardX.record_writer")
    monkeypatch.setattr(record_writer, "open_file", lambda path: FullDisk())
    writer = metrics.MetricsWriter(tmp_path, resume_step=0, tensorboard=True)
    with pytest.raises(OSError, match="No space left"):
        writer.write(1, {"loss": 1.0})
    # Nor does what waits for the next flush get lost in silence at the end.
    with pytest.raises(OSError, match="No space left"):
        writer.close()


def test_numbers_and_pictures_stand_in_one_file(tmp_path: Path) -> None:
    """A picture's own file had the name of the numbers' file within a second, and took its place."""
    pillow = pytest.importorskip("PIL.Image")
    writer = metrics.MetricsWriter(tmp_path, resume_step=0, tensorboard=True)
    writer.write(1, {"loss": 1.0})
    sheets = [np.arange(35 * c, dtype=np.uint8).reshape(5, 7, c) for c in (1, 3)]
    for step, sheet in enumerate(sheets, start=1):
        writer.picture(step, "samples", sheet)
    writer.write(2, {"loss": 2.0})
    writer.close()
    values = summaries(tmp_path / "tensorboard")
    assert [(step, v.tag) for step, v in values] == [(1, "loss"), (1, "samples"), (2, "samples"), (2, "loss")]
    for (_, value), sheet in zip(values[1:3], sheets, strict=True):
        image = value.image
        assert (image.height, image.width, image.colorspace) == sheet.shape
        shown = np.asarray(pillow.open(io.BytesIO(image.encoded_image_string)))
        np.testing.assert_array_equal(shown.reshape(sheet.shape), sheet)
    metrics.MetricsWriter(tmp_path / ".", resume_step=1, tensorboard=False).picture(1, "samples", sheets[0])


def test_a_disk_that_is_full_for_a_picture_is_said_at_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ten seconds of numbers later, when the next flush is due."""
    pytest.importorskip("PIL")
    record_writer = pytest.importorskip("tensorboardX.record_writer")
    disk = FullDisk()
    monkeypatch.setattr(record_writer, "open_file", lambda path: disk)
    monkeypatch.setattr(disk, "flush", lambda: None)
    writer = metrics.MetricsWriter(tmp_path, resume_step=0, tensorboard=True)
    writer.write(1, {"loss": 1.0})
    monkeypatch.undo()
    writer.write(2, {"loss": 1.0})  # not yet due
    with pytest.raises(OSError, match="No space left"):
        writer.picture(2, "samples", np.zeros((2, 2, 1), np.uint8))


def test_progress_says_step_rate_and_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    progress = metrics.Progress("score", start=0, total=1000, batch_size=8)
    now[0] = 130.0  # compilation, which must not count
    progress.started(1)
    now[0] = 140.0
    progress.line(101, {"loss": 0.25})
    assert progress.rates(101) == {"steps_per_second": 10.0, "examples_per_second": 80.0}
    assert caplog.messages[-1] == "score: step 101/1000 (10 %)  loss 0.25  10 steps/s  80 examples/s  ETA 1:30"
    said = len(caplog.messages)
    now[0] = 150.0
    progress.tick(201)
    assert len(caplog.messages) == said
    now[0] = 156.0
    progress.tick(261)
    assert caplog.messages[-1].startswith("score: step 261/1000 (26 %)  10 steps/s")


def test_silent_process_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    metrics.Progress("score", start=0, total=10, batch_size=1, silent=True).line(1, {})
    assert caplog.messages == []


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert metrics.duration(seconds) == text
