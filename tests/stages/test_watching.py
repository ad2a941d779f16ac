"""What a run writes beside its results: pictures, traces, PNG files, rows for Weights & Biases; no number changes."""

import dataclasses
import sys
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from launching import changed_config

from diffusion_privacy import settings, settings_kinds
from diffusion_privacy.data import pictures
from diffusion_privacy.errors import InputError
from diffusion_privacy.stages import cadp_privatize, cadp_train, run, sample, train
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import tracking
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.training.metrics import read_csv

pytestmark = pytest.mark.lightly_compiled

Image = pytest.importorskip("PIL.Image")

TINY = {
    "score.training.steps": 12,
    "score.training.warmup_steps": 2,
    "score.training.log_every": 6,
    "score.training.checkpoint_every": 12,
    "score.training.tensorboard": False,
    "score.network.params.hidden": 16,
    "score.network.params.depth": 1,
    "sampler.steps": 4,
    "audit.h_levels": 4,
    "audit.chunk": 16,
}


def job(**changes):
    return settings.parse(settings.Study, changed_config("digits", {**TINY, **changes}))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    pytest.importorskip("tensorboardX")
    seen = {"grid_every": 6, "grid_images": 5, "png": 3}
    study = job(outputs=seen, profile=2, **{"score.training.tensorboard": True})
    work = Workdir(tmp_path_factory.mktemp("watched"), study)
    # Compiled as the tests are, or sums would differ in their last bits: their mark takes effect after this is made.
    light, before = "jax_disable_most_optimizations", jax.config.read("jax_disable_most_optimizations")
    jax.config.update(light, True)
    train.fit_scores(study, work, common.load_roles(study, work), ["careless"])
    jax.config.update(light, before)
    return study, work


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_pictures_losses_and_a_trace_are_written(watched):
    _, work = watched
    folder = work.root / "train" / "careless"
    assert sorted(p.name for p in (folder / "grids").iterdir()) == ["00000006.png", "00000012.png"]
    sheet = np.asarray(Image.open(folder / "grids" / "00000012.png"))
    assert sheet.shape == (2 * 8 + 2, 3 * 8 + 4)  # five images in three columns
    [events] = (folder / "tensorboard").iterdir()
    for picture in (folder / "grids").iterdir():
        assert picture.read_bytes() in events.read_bytes()
    rows = read_csv(folder / "metrics.csv")
    assert np.isfinite(rows["eval/loss"]).sum() == 2
    traces = list((folder / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 0


def test_watching_changes_nothing_that_is_learned(watched, tmp_path):
    plain = job()
    work = Workdir(tmp_path, plain)
    train.fit_scores(plain, work, common.load_roles(plain, work), ["careless"])
    assert not (tmp_path / "train" / "careless" / "grids").exists()
    assert not (tmp_path / "train" / "careless" / "profile").exists()
    pairs = zip(
        *(jax.tree.leaves(restore_ema(place / "train" / "careless")[0]) for place in (watched[1].root, tmp_path)),
        strict=True,
    )
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_opens_with_plain_orbax(watched):
    _, work = watched
    folder = work.root / "train" / "careless" / "checkpoints" / "12"
    ours, _ = restore_ema(work.root / "train" / "careless")
    with ocp.StandardCheckpointer() as checkpointer:
        theirs = checkpointer.restore(folder / "ema")
        state = checkpointer.restore(folder / "state")
    assert int(state["step"]) == 12
    named = [dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (ours, theirs)]
    assert {str(k) for k in named[0]} == {str(k) for k in named[1]}
    for path, value in named[0].items():
        np.testing.assert_array_equal(value, named[1][path])


def test_samples_are_exported_as_npz_and_png_and_later_wishes_cost_no_sampling(watched):
    study, work = watched
    roles = common.load_roles(study, work)
    sample.draw_all(study, work, roles, {"careless": 7})
    sample.export(study, work, ["careless"])
    folder = work.root / "samples" / "careless"
    assert sorted(p.name for p in folder.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    images = work.read_arrays(work.root / "samples" / "careless.npz")["images"]
    assert images.shape == (7, 8, 8, 1)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "000001.png")), pictures.to_uint8(images[1, ..., 0]))
    more = dataclasses.replace(study, outputs=settings.Outputs(png=5))
    before = (work.root / "samples" / "careless.npz").stat().st_mtime_ns
    sample.export(more, Workdir(work.root, more), ["careless"])
    assert len(list(folder.iterdir())) == 5
    assert (work.root / "samples" / "careless.npz").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="expected \\[N, H, W, 1 or 3\\]"):
        pictures.write_folder(work.root / "x", images[..., 0])


@pytest.mark.slow
def test_a_flow_is_watched_too_and_a_release_says_what_was_done_to_the_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 10, 10), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(60) % 2)
    changes = {
        "data": {"source": "npz", "params": {"path": str(tmp_path / "set.npz"), "size": 8}},
        "flow.training.steps": 4,
        "flow.training.batch_size": 16,
        "flow.training.warmup_steps": 0,
        "flow.training.checkpoint_every": 4,
        "flow.params.depths": (1,),
        "flow.params.dense_depth": 1,
        "release.epsilons": (1.0,),
        "outputs.grid_every": 4,
    }
    study = settings_kinds.parse(changed_config("digits_cadp", changes))
    work = Workdir(tmp_path / "run", study)
    cadp_train.train(study, work)
    folder = work.root / "train" / "flow"
    assert (folder / "grids" / "00000004.png").exists()
    assert np.isfinite(read_csv(folder / "metrics.csv")["eval/loss"]).any()
    cadp_privatize.privatize(study, work)
    [said] = work.read_json(work.root / "releases" / "eps_1" / "manifest.json")["preparation"]
    assert said.startswith("size: 8 x 8 by Pillow")


class FakeWandb(types.ModuleType):
    """Keeps what it is told."""

    def __init__(self, fault=None):
        super().__init__("wandb")
        self.fault, self.started, self.rows, self.finished = fault, [], [], 0

    def Settings(self, **given):
        return given

    def init(self, **given):
        if self.fault is not None:
            raise self.fault
        self.started.append(given)
        return self

    def log(self, row, step):
        self.rows.append((step, dict(row)))

    def finish(self):
        self.finished += 1


def test_rows_go_to_wandb_where_it_is_asked_for(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    study = job(**{"outputs.wandb": "audits"})
    work = Workdir(tmp_path, study)
    train.fit_scores(study, work, common.load_roles(study, work), ["careless"])
    assert fake.finished == 1
    assert [step for step, row in fake.rows if "loss" in row] == [6, 12]
    given = fake.started[0]
    assert (given["project"], given["name"], given["resume"]) == ("audits", "careless", "allow")
    assert given["settings"]["console"] == "off"
    assert "path" not in repr(given["config"])
    with tracking.rows("audits", tmp_path / "train" / "careless", "careless", {}):
        pass
    assert fake.started[1]["id"] == given["id"]  # a resumed run goes on in the same one


def test_wandb_that_is_missing_or_does_not_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(InputError, match=r"config\.outputs\.wandb is 'x', but wandb is not installed"),
        tracking.rows("x", tmp_path, "a", {}),
    ):
        pass
    with pytest.raises(InputError, match="wandb is not installed"):
        run.run(job(**{"outputs.wandb": "x"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # said before anything is done
    with tracking.rows("", tmp_path, "a", {}) as on_log:
        assert on_log is None
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(RuntimeError("no\n  key")))
    with (
        pytest.raises(InputError, match=r"does not start \(RuntimeError: no key\); expected wandb login"),
        tracking.rows("x", tmp_path, "a", {}),
    ):
        pass
