"""The loop against closed forms, against itself on other devices, and against interruption."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_toys import SlopeTask, ToyBatches, ToyTask, summaries, to_numpy, toy_config

from diffusion_privacy.errors import DivergenceError, InputError
from diffusion_privacy.training import loop, rng, sharding
from diffusion_privacy.training.metrics import read_csv

HERE = Path(__file__).resolve().parent
TIMING = ("steps_per_second", "examples_per_second")


def mesh_of(count: int):
    if len(jax.devices()) < count:
        pytest.skip(f"needs {count} devices")
    return sharding.data_mesh(jax.devices()[:count])


def run(workdir: Path, *, task=None, batches=None, devices: int = 1, on_log=None, eval_fn=None, **changes):
    config = toy_config(**changes)
    return loop.train(
        task or ToyTask(),
        batches or ToyBatches(config.batch_size),
        config,
        workdir=workdir,
        seed=3,
        name="toy",
        on_log=on_log,
        eval_fn=eval_fn,
        mesh=mesh_of(devices),
    )


def assert_same(a, b) -> None:
    """Bit for bit, all leaves."""
    jax.tree.map(np.testing.assert_array_equal, to_numpy(a), to_numpy(b))


def assert_close(a, b, tolerance: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance), to_numpy(a), to_numpy(b))


GOLDEN = {"loss": 0.299261, "absolute": 0.629373, "grad_norm": 0.869751}


def test_golden_first_step(tmp_path: Path) -> None:
    rows = {}
    run(tmp_path, steps=1, warmup_steps=0, schedule="constant", log_every=1, on_log=rows.__setitem__)
    found = {name: rows[1][name] for name in GOLDEN}
    assert found == pytest.approx(GOLDEN, rel=1e-4), (
        f"The first step of a fixed toy run changed: {found}. If you meant to change what a step computes (random "
        "streams, initialisation, averaging, clipping), put these numbers into GOLDEN and say why in the commit; "
        "every existing training run changes with them. If you did not mean to, this is a bug."
    )


def test_another_generator_as_default_changes_nothing(tmp_path: Path) -> None:
    """Under vmap the ``rbg`` kinds would draw a whole batch from its first key, and records would depend on others."""
    rows: dict[int, dict] = {}
    with jax.default_prng_impl("rbg"):
        run(tmp_path, steps=1, warmup_steps=0, schedule="constant", log_every=1, on_log=rows.__setitem__)
        alone, beside = (
            jax.vmap(jax.random.normal)(rng.per_record(rng.stream(1, "x"), jnp.asarray(i))) for i in ([5], [2, 5])
        )
    assert {name: rows[1][name] for name in GOLDEN} == pytest.approx(GOLDEN, rel=1e-4)
    assert alone[0] == beside[1]


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "batch_size", "micro"), [(4, 8, 1), (3, 8, 1), (4, 3, 1), (1, 8, 4), (3, 7, 2)])
def test_devices_and_pieces_change_only_rounding(tmp_path: Path, devices: int, batch_size: int, micro: int) -> None:
    """Also batches that do not divide, and fewer rows than devices: padding enters neither loss nor gradient."""
    rows: dict[int, dict] = {}
    one = run(tmp_path / "one", batch_size=batch_size, on_log=rows.__setitem__)
    other_rows: dict[int, dict] = {}
    other = run(
        tmp_path / "other",
        batch_size=batch_size,
        devices=devices,
        micro_batches=micro,
        on_log=other_rows.__setitem__,
    )
    assert_close(one.params, other.params, 1e-5)
    assert_close(one.ema_params, other.ema_params, 1e-5)
    for step, row in rows.items():
        for name in ("loss", "absolute", "grad_norm"):
            assert other_rows[step][name] == pytest.approx(row[name], rel=1e-4)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_step_is_the_gradient_of_the_masked_mean(tmp_path: Path) -> None:
    """One step on 4 devices against plain differentiation of the mean over the real rows of a masked batch."""

    @dataclasses.dataclass(frozen=True)
    class Masked(ToyBatches):
        def batch(self, step: int) -> dict[str, np.ndarray]:
            batch = super().batch(step)
            batch["x"][5:] = np.inf  # what padding holds must not matter
            batch["mask"] = (np.arange(8) < 5).astype(np.float32)
            return batch

    task, rows = ToyTask(), {}
    run(tmp_path, batches=Masked(), steps=1, log_every=1, warmup_steps=0, devices=4, on_log=rows.__setitem__)
    real = {name: value[:5] for name, value in ToyBatches().batch(0).items()}
    params = task.init(rng.stream(3, "toy.init"), ToyBatches().batch(0))

    def mean(params):
        return jnp.mean(task.loss(params, real, rng.stream(3, "toy.step", 0))[0])

    loss, gradient = jax.value_and_grad(mean)(params)
    assert rows[1]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert rows[1]["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)


def test_ema_closed_form(tmp_path: Path) -> None:
    """Constant gradient: after k steps w = −lr k, so the average is known exactly; both decay rules."""
    for warm in (False, True):
        state = run(
            tmp_path / str(warm),
            task=SlopeTask(),
            steps=6,
            warmup_steps=0,
            schedule="constant",
            grad_clip_norm=0.0,
            weight_decay=0.0,
            ema_decay=0.8,
            ema_warmup=warm,
        )
        ema = 0.0
        for k in range(6):
            decay = min(0.8, (1 + k) / (10 + k)) if warm else 0.8
            ema = decay * ema + (1 - decay) * (-0.01 * (k + 1))
        np.testing.assert_allclose(state.params["w"], -0.06, rtol=1e-4)
        np.testing.assert_allclose(state.ema_params["w"], ema, rtol=1e-4)


@pytest.mark.parametrize("devices", [1, 4])
def test_resume_is_bit_for_bit(tmp_path: Path, devices: int) -> None:
    """Stopped between two checkpoints and in the middle of a window of metrics."""
    whole = run(tmp_path / "whole", devices=devices)
    part = tmp_path / "part"

    class Stop(Exception):
        pass

    def stop(step: int, row: dict) -> None:
        if step == 8:
            raise Stop

    with pytest.raises(Stop):
        run(part, devices=devices, checkpoint_every=3, on_log=stop)
    assert len(read_csv(part / "metrics.csv")["step"]) == 2
    rows: list[int] = []
    resumed = run(part, devices=devices, checkpoint_every=3, on_log=lambda step, row: rows.append(step))
    assert rows == [8, 12], "it went on after step 6"
    assert_same(whole, resumed)
    one, two = read_csv(tmp_path / "whole" / "metrics.csv"), read_csv(part / "metrics.csv")
    assert set(one) == set(two)
    for name in set(one) - set(TIMING):
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_finished_run_does_no_work(tmp_path: Path) -> None:
    first = run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    called: list[int] = []
    again = run(tmp_path, on_log=lambda step, row: called.append(step))
    assert_same(first, again)
    assert called == []
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("devices", [1, 4])
def test_divergence_names_the_exact_step_and_saves_nothing_bad(tmp_path: Path, devices: int) -> None:
    with pytest.raises(DivergenceError, match=r"'toy'.*in step 6 \(counted from 0\)"):
        run(tmp_path, batches=ToyBatches(poison=6), devices=devices, log_every=100, checkpoint_every=5)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["5"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(to_numpy(run(tmp_path, checkpoint_every=5))))


def test_infinite_gradient_of_a_finite_loss_is_divergence(tmp_path: Path) -> None:
    class Root(SlopeTask):
        def loss(self, params, batch, key):
            return jnp.sqrt(jnp.abs(params["w"][0])) * jnp.ones(batch["x"].shape[0]), {}

    with pytest.raises(DivergenceError, match="step 0"):
        run(tmp_path, task=Root())


def test_clipping_bounds_the_summed_gradient(tmp_path: Path) -> None:
    """Adam hides the scale of a gradient, so its first moment is read: after one step it is 0.1 of what was used."""
    rows: dict[int, dict] = {}
    for clip in (0.25, 0.0):
        state = run(
            tmp_path / str(clip), steps=1, warmup_steps=0, log_every=1, devices=4, grad_clip_norm=clip,
            on_log=rows.__setitem__,
        )  # fmt: skip
        moments = [
            s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
        ]
        used = float(jnp.sqrt(sum(jnp.sum(m**2) for m in jax.tree.leaves(moments[0])))) / 0.1
        assert rows[1]["grad_norm"] > 0.5, "the norm before clipping is what is logged"
        assert used == pytest.approx(clip or rows[1]["grad_norm"], rel=1e-4)


def test_evaluation_rows_and_columns(tmp_path: Path) -> None:
    run(tmp_path, eval_every=6, eval_fn=lambda state: {"norm": float(state.step)})
    table = read_csv(tmp_path / "metrics.csv")
    np.testing.assert_array_equal(table["eval/norm"][~np.isnan(table["eval/norm"])], [6, 12])
    assert sorted(table["step"][~np.isnan(table["loss"])]) == [4, 8, 12]


def test_a_picture_of_an_evaluation_is_no_number_and_goes_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    sheet, rows = np.full((3, 4, 1), 7, np.uint8), []

    def see(state):
        return {"norm": 1.0, "samples": sheet}

    run(tmp_path, eval_every=6, eval_fn=see, tensorboard=True, on_log=lambda step, row: rows.append(sorted(row)))
    assert "samples" not in " ".join(read_csv(tmp_path / "metrics.csv"))
    assert rows.count(["eval/norm"]) == 2
    tags = [(step, value.tag) for step, value in summaries(tmp_path / "tensorboard") if value.tag != "loss"]
    assert [one for one in tags if one[1] in ("samples", "eval/norm")] == [
        (6, "samples"), (6, "eval/norm"), (12, "samples"), (12, "eval/norm"),
    ]  # fmt: skip


def test_a_disk_that_is_full_for_a_picture_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its step, and before a number of the evaluation is put down."""
    pytest.importorskip("PIL")
    full = OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        self._writer.flush()
        if b"PNG" in Path(self.path).read_bytes():
            raise full

    monkeypatch.setattr(pytest.importorskip("tensorboardX.record_writer").RecordWriter, "flush", flush)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, eval_every=6, eval_fn=lambda state: {"samples": np.zeros((2, 2, 3), np.uint8)}, tensorboard=True)
    assert read_csv(tmp_path / "metrics.csv")["step"].max() == 4  # the row before the picture's step


def test_wrong_loss_shape_is_said_before_compiling(tmp_path: Path) -> None:
    class Scalar(SlopeTask):
        def loss(self, params, batch, key):
            return jnp.sum(params["w"]), {}

    with pytest.raises(ValueError, match=r"per-example values of shape \(8,\), 'loss' has \(\)"):
        run(tmp_path, task=Scalar())


def test_other_run_in_the_workdir_is_refused_and_left_alone(tmp_path: Path) -> None:
    run(tmp_path, steps=2, warmup_steps=0)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    class Other(ToyTask):
        def loss(self, params, batch, key):
            losses, metrics = super().loss(params, batch, key)
            return losses, {"another": metrics["absolute"]}

    for message, changes in {
        r"training.learning_rate \(there 0.01, here 0.02\)": {"learning_rate": 0.02},
        r"training.steps \(there 2, here 3\)": {"steps": 3},
        "source was 'toy', is 'another'": {"batches": ToyBatches(source="another")},
        r"first/bias is float32\[8\], expected float32\[9\]": {"task": ToyTask(width=9)},
        r"this task logs \['another'": {"task": Other()},
    }.items():
        with pytest.raises(InputError, match=message):
            run(tmp_path, **{"steps": 2, "warmup_steps": 0, **changes})
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_with_the_real_batch_stream(tmp_path: Path) -> None:
    """The stream's own state goes through a checkpoint, and other records are refused."""
    from diffusion_privacy.data import pipeline, sources

    class Mean(SlopeTask):
        def loss(self, params, batch, key):
            return (params["w"][0] - batch["image"].mean(axis=(1, 2, 3))) ** 2, {}

    records = sources.load("digits").take(np.arange(20))
    common = {"task": Mean(), "devices": 4, "steps": 5, "batch_size": 6, "warmup_steps": 0, "checkpoint_every": 2}
    first = run(tmp_path, batches=pipeline.Batches(records, 6, seed=1), **common)
    shutil.rmtree(tmp_path / "checkpoints" / "5")
    again = run(tmp_path, batches=pipeline.Batches(records, 6, seed=1), **common)
    assert_same(first, again)
    with pytest.raises(InputError, match="checkpointed data state: records"):
        run(tmp_path, batches=pipeline.Batches(records.take(np.arange(19, -1, -1)), 6, seed=1), **common)


def test_rows_of_one_process_only_are_refused(tmp_path: Path) -> None:
    class Half(ToyBatches):
        def batch(self, step):
            return {name: value[:4] for name, value in super().batch(step).items()}

    with pytest.raises(InputError, match=r"batch field 'x' has shape \(4, 4\), expected 8 rows"):
        run(tmp_path, batches=Half())


def test_batch_size_mismatch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch_size is 8, but the batches have 4 rows"):
        run(tmp_path, batches=ToyBatches(4))


CHILD = """
import os, sys, signal
sys.path.insert(0, {here!r})
from pathlib import Path
from training_toys import ToyTask, ToyBatches, toy_config
from diffusion_privacy.training import loop, sharding
kill, workdir, coordinator, process = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if coordinator != "-":
    assert sharding.initialise(coordinator, 2, process)

class Batches(ToyBatches):
    def batch(self, step):
        if step == kill:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(step)

try:
    state = loop.train(ToyTask(), Batches(), toy_config(), workdir=workdir, seed=3, name="toy")
    print("finished", int(state.step))
except loop.Preempted as error:
    print(error)
    sys.exit(75)
"""


def child(kill: int, workdir: Path, *, coordinator: str = "-", process: int = 0, devices: int = 1) -> subprocess.Popen:
    # All other flags stay: a child that compiles otherwise would not be equal bit for bit.
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags = " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"])
    env = dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    env["PYTHONPATH"] = str(HERE.parents[1])
    env["JAX_COMPILATION_CACHE_DIR"] = str(jax.config.jax_compilation_cache_dir)
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-c", CHILD.format(here=str(HERE)), str(kill), str(workdir), coordinator, str(process)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_sigterm_saves_and_the_next_start_goes_on(tmp_path: Path) -> None:
    process = child(5, tmp_path / "part")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output
    assert "stopped by SIGTERM after step" in output
    saved = [int(p.name) for p in (tmp_path / "part" / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert 5 < saved[0] < 12
    resumed = run(tmp_path / "part")
    whole = run(tmp_path / "whole")
    assert_same(resumed, whole)
    one, two = read_csv(tmp_path / "whole" / "metrics.csv"), read_csv(tmp_path / "part" / "metrics.csv")
    np.testing.assert_array_equal(one["loss"], two["loss"])


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path, steps=3)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """A real two-process job of 2 devices each; only process 1 is asked to stop, both do, and both go on."""
    for kill in (5, -1):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        jobs = [
            child(kill if p == 1 else -1, tmp_path / "two", coordinator=address, process=p, devices=2) for p in (0, 1)
        ]
        outputs = [job.communicate(timeout=300)[0] for job in jobs]
        expected = 75 if kill >= 0 else 0
        assert [job.returncode for job in jobs] == [expected, expected], "\n".join(outputs)
    two = run(tmp_path / "two")
    one = run(tmp_path / "one")
    assert int(two.step) == 12
    assert_close(one.params, two.params, 1e-5)
    rows = [read_csv(tmp_path / folder / "metrics.csv")["loss"] for folder in ("one", "two")]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4)
