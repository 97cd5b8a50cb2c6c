"""A stage of training in a recipe: its optimizer, its data, and what it leaves."""

import dataclasses
import gc
import itertools
import json
import os
import signal
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcmeqx as mc
from mcmeqx.nets import AbstractNetwork, MLPConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import _capsule
import _grids
import _runs
import _training
from _options import Evaluation

pytestmark = pytest.mark.usefixtures("as_users_run")

KEY = jax.random.key(0)


class Gain(AbstractNetwork):
    """The smallest network there is."""

    a: jax.Array

    def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
        return self.a * z


def model() -> mc.Denoiser:
    return mc.Denoiser(Gain(jnp.float32(0.1)), mc.Cosine())


def images() -> mc.data.Images:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
    return mc.data.Images(pixels, np.zeros(40, np.int32), ("a",), "few")


def plan(**changes) -> _training.Plan:
    made = _training.Plan(200, 8, 1e-2, 0.9, 0, mc.make_mesh())
    return dataclasses.replace(made, **changes)


def train(run: Path, made: _training.Plan) -> _training.Trained:
    arguments = "m", run, mc.DiffusionLoss(), model(), images(), made
    return _training.train(*arguments, grid=mc.uniform_grid(2), key=KEY)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(_training, "Grids", lambda *_, **__: lambda *_: None)


@pytest.fixture
def handed(no_pictures, monkeypatch):
    """Trains nothing; gives what `fit` would have been given by name."""
    seen = {}

    def fit(*_, **options):
        seen.update(options)
        raise SystemExit

    monkeypatch.setattr(mc, "fit", fit)
    return seen


def test_the_rate_warms_up_and_falls_and_gradients_are_clipped():
    # Of 200 steps a twentieth to warm up, then half a cosine down to a twentieth.
    optimizer = plan().learner(mc.DiffusionLoss()).optimizer
    parameters, steep = {"w": jnp.zeros(4)}, {"w": jnp.full(4, 1e3)}
    state, moved = optimizer.init(parameters), []
    for step in range(200):
        updates, state = optimizer.update(steep, state, parameters)
        moved.append(-float(updates["w"][0]))
        if step == 0:
            # By Kingma & Ba 2015, nu = (1 - b2) g^2, of a gradient of norm 1.
            (nu,) = [a for a in jax.tree.leaves(state) if np.allclose(a, 0.01 * 0.25)]
            assert nu.shape == (4,)
    # A gradient that stays the same moves by the rate.
    rate = np.array([1e-3 * step for step in range(10)])
    np.testing.assert_allclose(moved[:10], rate, rtol=2e-3, atol=1e-9)
    done = np.arange(190) / 190
    rate = 1e-2 * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * done)))
    np.testing.assert_allclose(moved[10:], rate, rtol=2e-3)


def test_processes_share_a_batch_and_its_mirrored_images(monkeypatch):
    options = {"batch_size": 8, "seed": 0, "start": 5, "flip": True}
    whole = next(mc.data.batches(images(), **options))
    plain = next(mc.data.batches(images(), **(options | {"flip": False})))
    assert (whole.x != plain.x).any()
    made = plan(flip=True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda i=process: i)
        share = next(made.batches(images(), 5))
        np.testing.assert_array_equal(share.x, whole.x[4 * process : 4 * process + 4])


@pytest.mark.parametrize(
    ("iterations", "every"), [(700_000, 1000), (3000, 300), (600, 100), (50, 50)]
)
def test_a_run_is_saved_ten_times_and_every_thousand_steps_at_least(
    tmp_path, handed, iterations, every
):
    with pytest.raises(SystemExit):
        train(tmp_path, plan(iterations=iterations))
    assert handed["save_every"] == every


def test_speed_is_a_share_of_all_devices_of_the_mesh(tmp_path, handed, monkeypatch):
    monkeypatch.setattr(mc, "matmul_peak", lambda dtype: 1e9)
    given, real = {}, mc.Speed

    def speed(**options):
        given.update(options)
        return real(**options)

    monkeypatch.setattr(mc, "Speed", speed)
    with pytest.raises(SystemExit):
        train(tmp_path, plan())
    assert given["batch_size"] == 8
    assert given["peak"] == mc.make_mesh().size * 1e9 == 4e9


def test_no_second_state_is_held_while_a_stage_trains(
    tmp_path, no_pictures, monkeypatch
):
    held = []

    def fit(learner, state, batches, **_):
        moment = weakref.ref(state.opt_state[1][0].mu.network.a)
        assert moment() is not None
        del state
        gc.collect()
        held.append(moment() is not None)
        raise SystemExit

    monkeypatch.setattr(mc, "fit", fit)
    monkeypatch.setattr(_training, "_seen", lambda *_: [])
    with pytest.raises(SystemExit):
        train(tmp_path, plan())
    assert held == [False]


def test_a_stopped_stage_says_how_and_goes_on_with_its_records(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"seed": 3}')
    monkeypatch.setattr(_training, "_EVERY", 1)

    def stops(step, state, metrics):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    boards, real = [], mc.TensorBoard

    def board(*_, start, **options):
        boards.append(start)
        return real(*_, start=start, **options)

    board.installed = lambda: True
    monkeypatch.setattr(mc, "TensorBoard", board)
    with monkeypatch.context() as patch:
        patch.setattr(_training, "Grids", lambda *_, **__: stops)
        with pytest.raises(SystemExit) as stopped:
            train(tmp_path, plan(iterations=20))
    # As a shell has it for a program that a signal ended.
    assert stopped.value.code == 128 + signal.SIGTERM
    (step,) = (tmp_path / "m").iterdir()
    about = json.loads((step / "about" / "metadata").read_text())
    assert about["config"] == {"seed": 3}
    reached = int(step.name)
    before = mc.read_metrics(tmp_path / "m.jsonl")
    assert [r["step"] for r in before] == list(range(1, reached + 1))
    monkeypatch.setattr(_training, "Grids", lambda *_, **__: lambda *_: None)
    trained = train(tmp_path, plan(iterations=20))
    after = mc.read_metrics(tmp_path / "m.jsonl")
    assert [r["step"] for r in after] == list(range(1, 21))
    assert after[:reached] == before
    seconds = [r["seconds"] for r in after]
    assert all(a <= b for a, b in itertools.pairwise(seconds))
    assert trained.seconds == seconds[-1]
    assert boards == [0, reached]


class StepLoss(mc.AbstractLoss):
    """The number of the step."""

    def __call__(self, model, example, *, step, key):
        value = jnp.float32(step) + 0.0 * jnp.sum(model(example.x, 0.5))
        return value, {"loss": value}


def test_a_capsule_is_looked_into_at_the_step_it_was_left_by(tmp_path):
    network = MLPConfig(2, 8, 1, embedding=8).build(key=KEY)
    learner = plan().learner(StepLoss())
    state = learner.init(mc.Denoiser(network, mc.Cosine()), key=KEY)
    batch = mc.Example(jnp.ones((4, 2)))
    losses = []
    for _ in range(3):
        state, metrics = learner.step(state, batch)
        losses.append(float(metrics["loss"]))
    text = _capsule.replay(_capsule.Capsule(tmp_path, "m", batch, 3), learner, state)
    rows = text.splitlines()[1:]
    assert [float(row.split()[1]) for row in rows] == [losses[-1]] * 4


def test_a_folder_in_which_a_file_was_cut_off_is_still_empty(tmp_path):
    (tmp_path / "part_0123_config.json").write_text("{")
    _runs.claim(tmp_path, "r", Evaluation())
    assert (tmp_path / "config.json").exists()


def test_a_run_is_of_what_it_was_made_of_then_as_now(tmp_path):
    _runs.claim(tmp_path, "r", Evaluation(), data_sha256="1")
    with pytest.raises(ValueError, match="data_sha256"):
        _runs.claim(tmp_path, "r", Evaluation())


def test_pictures_are_of_the_average(tmp_path, monkeypatch):
    asked = []

    def generate(model, *_, **__):
        asked.append(float(model.network.a))
        return jnp.zeros((16, 3, 4, 4), jnp.float32)

    monkeypatch.setattr(mc, "generate", generate)
    monkeypatch.setattr(_grids, "draw", lambda *_: None)
    monkeypatch.setattr(_grids, "_ROWS", 16)
    learner = plan().learner(mc.DiffusionLoss())
    state = learner.init(model(), key=KEY)
    average = mc.Denoiser(Gain(jnp.float32(0.5)), mc.Cosine())
    state = dataclasses.replace(state, ema=average)
    mesh = mc.make_mesh()
    grid = mc.uniform_grid(1)
    pictures = _grids.Grids(tmp_path, images(), grid, None, every=2, mesh=mesh)
    for step in range(1, 5):
        pictures(step, state, {})
    assert asked == [0.5, 0.5]
