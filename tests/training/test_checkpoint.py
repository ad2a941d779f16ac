"""What comes back is what was saved, or one line says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import checkpoint
from diffusion_privacy.training.checkpoint import Checkpoints, restore_ema
from diffusion_privacy.training.state import TrainState

IDENTITY = {"training.learning_rate": 0.1, "seed": 3, "shape": (8, 8)}


def make_state(step: int, shape: tuple[int, ...] = (64, 8), dtype=jnp.float32) -> TrainState:
    draw = np.random.default_rng(step)
    params = {"a": {"kernel": jnp.asarray(draw.standard_normal(shape), dtype), "bias": jnp.zeros(3)}}
    ema = jax.tree.map(lambda x: x + 1, params)
    mu = jax.tree.map(lambda x: x - 1, params)
    return TrainState(jnp.asarray(step, jnp.int32), params, ema, (({"mu": mu}, jnp.zeros((), jnp.int32)), ()))


def template(**changes) -> TrainState:
    return jax.eval_shape(lambda: make_state(0, **changes))


def save(workdir: Path, *steps: int, keep: int = 5, identity: dict | None = None) -> None:
    with Checkpoints(workdir, identity or IDENTITY, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step), {"data": {"next_batch": step}})
        checkpoints.wait()


def restore(workdir: Path, identity: dict | None = None, **changes):
    with Checkpoints(workdir, identity or IDENTITY, keep=5) as checkpoints:
        return checkpoints.restore(template(**changes))


def assert_one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, f"{part!r} not in {text!r}"


def test_round_trip_keeps_every_bit_and_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("relative"), 1, 2, 3, keep=2)
    assert sorted(p.name for p in (tmp_path / "relative" / "checkpoints").iterdir()) == ["2", "3"]
    found = restore(Path("relative"))
    assert found.progress == {"data": {"next_batch": 3}}
    jax.tree.map(np.testing.assert_array_equal, found.state, jax.tree.map(np.asarray, make_state(3)))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), found.state, make_state(3))


def test_state_may_be_donated_after_save(tmp_path: Path) -> None:
    """The write goes on in the background while the next steps reuse the memory."""
    state = make_state(1, (512, 512))
    grow = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    with Checkpoints(tmp_path, IDENTITY, keep=1) as checkpoints:
        checkpoints.save(state, {})
        for _ in range(20):
            state = grow(state)
    found = restore(tmp_path, shape=(512, 512))
    np.testing.assert_array_equal(found.state.params["a"]["kernel"], make_state(1, (512, 512)).params["a"]["kernel"])


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert restore(tmp_path) is None


def test_other_configuration_is_refused_naming_the_fields(tmp_path: Path) -> None:
    save(tmp_path, 1)
    other = {**IDENTITY, "training.learning_rate": 0.2, "network": "mlp"}
    with pytest.raises(InputError) as error:
        restore(tmp_path, other)
    assert_one_line(error, str(tmp_path), "training.learning_rate (there 0.1, here 0.2)", "network (there 'absent'")
    assert "seed" not in str(error.value)
    assert restore(tmp_path).state.step == 1


def test_other_shape_or_dtype_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(InputError) as error:
        restore(tmp_path, shape=(64, 9))
    assert_one_line(error, "kernel is float32[64, 8], expected float32[64, 9]")
    with pytest.raises(InputError) as error:
        restore(tmp_path, dtype=jnp.bfloat16)
    assert_one_line(error, "kernel is float32[64, 8], expected bfloat16[64, 8]")


def test_bfloat16_round_trip(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, IDENTITY, keep=1) as checkpoints:
        checkpoints.save(make_state(1, dtype=jnp.bfloat16), {})
    found = restore(tmp_path, dtype=jnp.bfloat16).state.params["a"]["kernel"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, make_state(1, dtype=jnp.bfloat16).params["a"]["kernel"])


def files_of(step: Path) -> list[Path]:
    return sorted(p for p in step.rglob("*") if p.is_file())


@pytest.mark.slow
def test_any_damage_to_the_latest_is_said_and_never_fallen_back_from(tmp_path: Path) -> None:
    """Each file of the newest checkpoint is emptied, cut, altered and deleted in turn.

    Either the read is refused naming that checkpoint, or the file does not matter and every bit is right.
    """
    save(tmp_path / "good", 1, 2)
    names = [p.relative_to(tmp_path / "good") for p in files_of(tmp_path / "good" / "checkpoints" / "2")]
    refused = 0
    for name in names:
        for damage in ("cut", "flip", "delete"):
            shutil.rmtree(tmp_path / "bad", ignore_errors=True)
            shutil.copytree(tmp_path / "good", tmp_path / "bad")
            path = tmp_path / "bad" / name
            content = bytearray(path.read_bytes())
            if damage == "delete":
                path.unlink()
            elif damage == "cut":
                path.write_bytes(content[: len(content) // 2])
            else:
                content[len(content) // 2] ^= 0x40
                path.write_bytes(content)
            message = None
            try:
                found = restore(tmp_path / "bad")
            except InputError as error:
                message = str(error)
            if message is not None:
                refused += 1
                assert "checkpoints/2" in message
                assert "\n" not in message
            else:
                assert found.state.step == 2, (name, damage)
                jax.tree.map(np.testing.assert_array_equal, found.state, jax.tree.map(np.asarray, make_state(2)))
    assert refused >= 9


def test_silent_alteration_is_caught_by_the_checksum(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = next((tmp_path / "checkpoints" / "1" / "meta").glob("metadata*"))
    meta = json.loads(path.read_text())
    meta["items"]["ema"]["crc32"] ^= 1
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"checkpoints/1/ema: damaged checkpoint, its checksum"):
        restore(tmp_path)
    with pytest.raises(InputError, match=r"checkpoints/1/ema: damaged checkpoint, its checksum"):
        restore_ema(tmp_path)


def test_half_written_checkpoint_is_ignored(tmp_path: Path) -> None:
    """What a kill in mid-save leaves: a folder under a temporary name."""
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")
    (folder / "2.orbax-checkpoint-tmp" / "_CHECKPOINT_METADATA").unlink()
    assert restore(tmp_path).state.step == 1
    save(tmp_path, 2)
    assert restore(tmp_path).state.step == 2


def test_unwritable_workdir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run/checkpoints: expected a folder that can be written"):
        Checkpoints(tmp_path / "file" / "run", IDENTITY, keep=1)


def test_restore_ema(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    expected = jax.tree.map(np.asarray, make_state(2).ema_params)
    for shape in (None, template().ema_params):
        params, step = restore_ema(tmp_path, shape, {"seed": 3})
        assert step == 2
        assert jax.tree.structure(params) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    with pytest.raises(InputError, match=r"seed \(there 3, here 4\)"):
        restore_ema(tmp_path, None, {"seed": 4})
    with pytest.raises(InputError, match="expected float32"):
        restore_ema(tmp_path, template(shape=(1, 2)).ema_params)


def test_restore_ema_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a checkpoint, found none"):
        restore_ema(tmp_path)
    assert not list(tmp_path.iterdir()), "reading creates nothing"


def test_meta_holds_versions_and_hash(tmp_path: Path) -> None:
    save(tmp_path, 1)
    meta = json.loads(next((tmp_path / "checkpoints" / "1" / "meta").glob("metadata*")).read_text())
    assert meta["versions"]["jax"] == jax.__version__
    assert meta["identity_hash"] == checkpoint.identity_hash(meta["identity"])


def test_a_full_disk_is_said_before_the_library_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    room = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: room)
    with pytest.raises(InputError, match=r"expected room for a checkpoint of [\d,]+ bytes, 100 are free") as error:
        save(tmp_path, 2)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1"]
