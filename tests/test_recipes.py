"""Each recipe runs whole on the tiniest network, resumes, and refuses bad input."""

import ast
import csv
import dataclasses
import inspect
import itertools
import json
import math
import re
import subprocess
import sys
import textwrap
import types
import typing
from pathlib import Path

import equinox as eqx
import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image
from test_stage import Gain

import mcmeqx as mc
from mcmeqx.nets import Stage, UViTConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import _compare
import _given
import _pictures
import _rows
import _runs
import _stages
import _student
import _training
import cd_imagenet64
import ct_imagenet64
import interpolate
import samples
import teacher_imagenet64
from _machine import Memory, Mesh
from _options import Config, Evaluation, Training, filled
from _solvers import Kind, TeacherSolver

pytestmark = pytest.mark.usefixtures("as_users_run", "tiny_demo")

KEY = jax.random.key(0)
NETWORK = UViTConfig(
    64, (Stage("resnet", 4, 1),), classes=9, null_class=True, embedding=8, patch=16
)


@pytest.fixture(scope="module")
def few_images():
    """Every sixtieth of the demo's images."""
    images = mc.data.openmoji()
    few = slice(None, None, 60)
    return dataclasses.replace(
        images, pixels=images.pixels[few], labels=images.labels[few]
    )


@pytest.fixture
def tiny_demo(monkeypatch, tmp_path, few_images):
    """The demo with a network and a teacher that take seconds, in an empty folder."""
    demo = dataclasses.replace(_stages.DEMO, network=NETWORK, batch_size=8)
    monkeypatch.setattr(_stages, "DEMO", demo)
    monkeypatch.setattr(_stages.mc.data, "openmoji", lambda: few_images)
    embedded = tmp_path / "embedded.eqx"
    mc.save_model(embedded, _stages.new_denoiser(demo, jax.random.key(0)))
    monkeypatch.setattr(mc, "EMOJI_TEACHER", embedded)
    student = tmp_path / "embedded_student.eqx"
    mc.save_model(student, _stages.new_denoiser(demo, jax.random.key(1)))
    monkeypatch.setattr(mc, "EMOJI_STUDENT", student)
    monkeypatch.chdir(tmp_path)


def tiny_config(kind=cd_imagenet64.Config, **changes) -> Config:
    training = Training(iterations=3)
    fields = {"steps": 2, "training": training, "evaluation": Evaluation(samples=9)}
    return kind(**(fields | changes))


def rows_of(table: Path) -> list[dict]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_cd_makes_table_picture_and_checkpoints_then_finishes_again(
    capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["cd_imagenet64.py", "--steps", "2"])
    solver = TeacherSolver(kind="heun", substeps=2)
    options = {"teacher": "scratch", "teacher_solver": solver}
    options["training"] = Training(teacher_iterations=3, iterations=3)
    table = cd_imagenet64.main(tiny_config(**options))
    printed = capsys.readouterr().out
    assert "DEMO, NOT IMAGENET" in printed[:200]
    rows = rows_of(table)
    assert [(row["method"], row["steps"]) for row in rows] == [
        ("data against data (floor)", ""),
        ("teacher, DDIM", "256"),
        ("teacher, aDDIM", "256"),
        ("teacher, DDIM", "2"),
        ("teacher, aDDIM", "2"),
        ("student (cd), DDIM", "2"),
    ]
    assert {row["data"] for row in rows} == {"openmoji64"}
    assert {row["samples"] for row in rows} == {"9"}
    to_teacher = [row["distance_to_teacher"] for row in rows]
    assert float(to_teacher[1]) == pytest.approx(0.0, abs=0.1)
    assert float(to_teacher[3]) > 1.0
    assert all(float(row["distance_to_data"]) > 0 for row in rows)
    assert {row["command"] for row in rows} == {"python cd_imagenet64.py --steps 2"}
    assert [row["iterations"] for row in rows] == [""] + ["3"] * 5
    assert [row["weights"] for row in rows] == [""] + ["this run"] * 5
    for name, value in {"seed": "0", "training_seed": "0"}.items():
        assert {row[name] for row in rows} == {value}
    assert {row["feature_network"] for row in rows} == {
        "EfficientNet-Lite0 block 3, 24-d"
    }
    assert all(float(row["sampling_seconds"]) >= 0 for row in rows[1:])
    assert all(float(row["training_seconds"]) > 0 for row in rows[1:])
    run = table.parents[1]
    assert (table.parent / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert not [p for p in run.rglob("*") if "imagenet" in p.name.lower()]
    assert not [p for p in run.rglob("*") if "part" in p.name.lower()]
    assert all(str(p) in printed for p in (table, table.parent / "samples.png", run))

    lines = (run / "student.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["teacher_evaluations"] == 4
    config = json.loads((run / "config.json").read_text())
    assert config["teacher_solver.kind"] == "heun"

    models = {p: p.read_bytes() for p in run.glob("*.eqx")}
    assert {p.name for p in models} == {"teacher.eqx", "student.eqx"}
    before = table.read_text()
    again = cd_imagenet64.main(tiny_config(**options))
    assert again.read_text() == before
    assert models == {p: p.read_bytes() for p in models}
    with pytest.raises(ValueError, match="seed=0"):
        cd_imagenet64.main(tiny_config(**options, seed=1))
    with pytest.raises(ValueError, match="recipe=cd"):
        ct_imagenet64.main(
            tiny_config(ct_imagenet64.Config, teacher="scratch", out=run)
        )


@pytest.mark.slow
def test_ct_starts_from_the_embedded_teacher_and_can_be_measured_again():
    config = tiny_config(ct_imagenet64.Config, steps=1)
    table = ct_imagenet64.main(config)
    run = table.parents[1]
    assert not (run / "teacher.eqx").exists()
    assert [row["weights"] for row in rows_of(table)][1::4] == ["embedded", "this run"]
    assert "student (ct), DDIM" in table.read_text()
    samples = np.load(table.parent / "samples" / "student_ct_DDIM_1.npz")["x"]
    assert samples.shape == (9, 3, 64, 64)
    assert np.isfinite(samples).all()
    other = dataclasses.replace(config, evaluation=Evaluation(samples=9, seed=1))
    assert ct_imagenet64.main(other) != table
    assert table.exists()
    mc.EMOJI_TEACHER.write_bytes(table.read_bytes())
    with pytest.raises(ValueError, match="does not hold a model"):
        ct_imagenet64.main(config)


def train_gain(folder: str, images, ema_decay: float = 0.9) -> bytes:
    run = Path(folder)
    run.mkdir(exist_ok=True)
    _training.train(
        "m",
        run,
        mc.DiffusionLoss(),
        mc.Denoiser(Gain(jnp.float32(0.1)), mc.Cosine()),
        images,
        _training.Plan(9, 8, 1e-2, ema_decay, 0, mc.make_mesh()),
        grid=mc.uniform_grid(2),
        key=jax.random.key(0),
    )
    return (run / "m.eqx").read_bytes()


@pytest.mark.slow
def test_training_cut_in_the_middle_ends_with_the_same_average(few_images, monkeypatch):
    monkeypatch.setattr(_training, "_APART", 1)
    whole = train_gain("whole", few_images)
    log = mc.JsonLines.__call__

    def cut(self, step, *rest):
        if step == 4:
            raise KeyboardInterrupt
        log(self, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mc.JsonLines, "__call__", cut)
        with pytest.raises(KeyboardInterrupt):
            train_gain("cut", few_images)
    steps = [int(p.name) for p in Path("cut/m").iterdir()]
    assert max(steps) == 3
    assert train_gain("cut", few_images) == whole
    assert train_gain("raw", few_images, ema_decay=0.0) != whole


def test_each_teacher_solver_is_the_teacher_it_names():
    model = _stages.new_denoiser(_stages.DEMO, jax.random.key(0))

    def built(**options):
        return TeacherSolver(**options).build(model, None)

    assert built(kind="addim").x_var_fraction == 0.75
    assert built(kind="ddim").x_var_fraction == 0.0
    assert isinstance(built(kind="midpoint"), mc.MidpointTeacher)
    for kind in set(typing.get_args(Kind)) - {"addim", "ddim", "midpoint"}:
        teacher = built(kind=kind)
        assert type(teacher.solver).__name__.lower() == kind
        assert len(teacher.stepsize_controller.ts) == 2
    assert len(built(kind="heun", substeps=3).stepsize_controller.ts) == 4
    adaptive = built(kind="tsit5", tolerance=1e-3).stepsize_controller
    assert (adaptive.rtol, adaptive.atol) == (1e-3, 1e-3)
    guidance = mc.Guidance(0.5)
    for kind in ("addim", "ddim", "midpoint", "heun"):
        solver = TeacherSolver(kind=kind)
        assert built(kind=kind).guidance is None
        assert solver.build(model, guidance).guidance is guidance


@pytest.mark.parametrize(
    ("kind", "data_dir", "steps", "named"),
    [
        (None, None, "midpoint", ()),
        (None, Path("imagenet"), "addim", ()),
        ("addim", None, "addim", ("addim",)),
        ("ddim", Path("imagenet"), "ddim", ("ddim",)),
        ("midpoint", Path("imagenet"), "midpoint", ("midpoint",)),
    ],
)
def test_the_teacher_steps_as_suits_the_data(monkeypatch, kind, data_dir, steps, named):
    asked = []
    monkeypatch.setattr(
        cd_imagenet64, "run_student", lambda *a, **more: asked.append((*a, more))
    )
    solver = TeacherSolver(kind=kind)
    cd_imagenet64.main(cd_imagenet64.Config(data_dir=data_dir, teacher_solver=solver))
    ((recipe, config, make_teacher, more),) = asked
    assert (recipe, more["named"]) == ("cd", named)
    teacher = make_teacher(_stages.new_denoiser(_stages.DEMO, KEY))
    shares = {"addim": 0.75, "ddim": 0.0, "midpoint": None}
    assert getattr(teacher, "x_var_fraction", None) == shares[steps]
    assert isinstance(teacher, mc.MidpointTeacher) == (steps == "midpoint")
    # The folder remembers what was filled in.
    assert config.teacher_solver.kind == steps


@pytest.mark.parametrize(
    ("given", "order", "named"), [({}, 1, ()), ({"order": 2}, 2, ("order_2",))]
)
def test_targets_from_data_have_the_order_that_is_asked_for(
    monkeypatch, given, order, named
):
    asked = []
    monkeypatch.setattr(
        ct_imagenet64, "run_student", lambda *a, **more: asked.append((*a, more))
    )
    ct_imagenet64.main(ct_imagenet64.Config(**given))
    ((recipe, _, make_teacher, more),) = asked
    assert (recipe, more) == ("ct", {"named": named, "order": order})
    assert isinstance(make_teacher(None), mc.DataTeacher)


@pytest.mark.parametrize("preset", [_stages.DEMO, _stages.IMAGENET])
def test_consistency_training_takes_its_own_number_of_teacher_steps(preset):
    own = dataclasses.replace(preset, data_anneal=(3.0, 5.0, 7))
    assert filled(Config(), own, "ct").training.anneal == (3.0, 5.0, 7)
    assert filled(Config(), own, "cd").training.anneal == preset.anneal
    given = Config(training=Training(anneal=(1.0, 2.0, 3)))
    assert filled(given, own, "ct").training.anneal == (1.0, 2.0, 3)
    without = dataclasses.replace(preset, data_anneal=None)
    assert filled(Config(), without, "ct").training.anneal == preset.anneal


@pytest.mark.slow
def test_a_student_of_a_range_of_scales_is_measured_at_each_that_is_asked_for():
    def run(guidance: float) -> tuple[Path, list[dict]]:
        training = Training(iterations=2)
        options = {"guidance": guidance, "guidance_range": (0.0, 2.0), "steps": 1}
        table = cd_imagenet64.main(tiny_config(training=training, **options))
        return table, rows_of(table)

    table, rows = run(0.5)
    assert "guidance_0_2" in str(table)
    assert {row["guidance"] for row in rows} == {"0.5"}
    assert [row["evaluations"] for row in rows] == ["", "512", "512", "2", "2", "1"]
    path = table.parents[1] / "student.eqx"
    student = path.read_bytes()
    line = (path.parent / "student.jsonl").read_text().splitlines()[-1]
    # The midpoint step's two calls, each with and without the class.
    assert json.loads(line)["teacher_evaluations"] == 4
    network = dataclasses.replace(NETWORK, guidance_input=True)
    preset = dataclasses.replace(_stages.DEMO, network=network)
    mc.load_model(path, _stages.denoiser_shapes(preset))
    other, rows = run(1.5)
    assert other.parents[1] == table.parents[1]
    assert other != table
    assert table.exists()
    assert rows[1]["guidance"] == "1.5"
    assert path.read_bytes() == student


def test_a_student_starts_from_the_embedded_one_its_teacher_or_a_file(monkeypatch):
    started = []

    def train(name, run, loss, model, *_, **__):
        started.append((model, loss))
        return _training.Trained(model, "this run", 1, 1.0)

    monkeypatch.setattr(_student, "train", train)
    monkeypatch.setattr(_student, "compare", lambda rows, *_, **__: rows[-1].trained)
    teacher, student = map(mc.load, (mc.EMOJI_TEACHER, mc.EMOJI_STUDENT))
    file = "given.eqx"
    other = _stages.new_denoiser(_stages.DEMO, jax.random.key(2))
    mc.save_model(file, other)
    cases = (
        (cd_imagenet64, {}, student, "this run, from embedded"),
        (cd_imagenet64, {"start_from": "teacher"}, teacher, "this run"),
        (
            cd_imagenet64,
            {"start_from": file},
            mc.load(file),
            "this run, from given.eqx",
        ),
        (cd_imagenet64, {"teacher": file}, other, "this run"),
        (ct_imagenet64, {}, teacher, "this run"),
        (ct_imagenet64, {"order": 2}, teacher, "this run"),
    )
    for i, (recipe, options, expected, weights) in enumerate(cases):
        kind = getattr(recipe, "Config", Config)
        trained = recipe.main(tiny_config(kind, out=Path(f"run_{i}"), **options))
        assert trained.weights == weights
        model, loss = started[-1]
        assert eqx.tree_equal(model.network, expected.network)
        assert loss.order == options.get("order", 1)
    assert not eqx.tree_equal(teacher.network, student.network)


@pytest.fixture
def stages(monkeypatch):
    """What the recipes hand to `train`, which trains nothing."""
    seen = []

    def train(name, run, loss, model, images, plan, **_):
        seen.append(types.SimpleNamespace(**locals()))
        return _training.Trained(model, "this run", 1, 1.0)

    monkeypatch.setattr(_student, "train", train)
    monkeypatch.setattr(teacher_imagenet64, "train", train)
    monkeypatch.setattr(_student, "compare", lambda *_, **__: None)
    demo = dataclasses.replace(_stages.DEMO, flip=True)
    monkeypatch.setattr(_stages, "DEMO", demo)
    return seen


def test_both_stages_are_made_of_what_was_asked_for(stages):
    training = Training(
        iterations=3,
        teacher_iterations=4,
        weighting="sqrt_snr_plus_one",
        distance=mc.PseudoHuber(0.25),
        ema_decay=0.5,
        precision="bfloat16",
        label_dropout=0.3,
        learning_rate=0.125,
        batch_size=24,
    )
    config = tiny_config(
        training=training,
        teacher="scratch",
        start_from="teacher",
        memory=Memory(2),
        seed=3,
        out=Path("run"),
    )
    cd_imagenet64.main(config)
    teacher, student = stages
    assert (teacher.name, student.name) == ("teacher", "student")
    assert teacher.loss.label_dropout == 0.3
    assert student.loss.weighting is mc.sqrt_snr_plus_one
    assert student.loss.distance == mc.PseudoHuber(0.25)
    assert (teacher.plan.iterations, student.plan.iterations) == (4, 3)
    assert (teacher.plan.ema_decay, student.plan.ema_decay) == (0.99, 0.5)
    assert (teacher.plan.learning_rate, student.plan.learning_rate) == (2e-3, 0.125)
    # The student does not see the images in the order that its teacher did.
    assert teacher.plan.seed != student.plan.seed
    for stage in stages:
        assert stage.model.dtype == jnp.bfloat16
        assert (stage.plan.batch_size, stage.plan.accumulate) == (24, 2)
        assert stage.plan.flip
        assert stage.images.headroom == _stages.DEMO.headroom == 0.1
    # The command that a stopped run prints is of the same run.
    cd_imagenet64.main(dataclasses.replace(config, replay=Path("capsule.npz")))
    assert stages[-1].plan.replay == Path("capsule.npz")


def test_a_teacher_is_made_of_what_was_asked_for(stages):
    config = teacher_imagenet64.Config(
        out=Path("teacher"),
        iterations=2,
        batch_size=24,
        learning_rate=0.125,
        ema_decay=0.5,
        label_dropout=0.3,
        memory=Memory(2),
    )
    teacher_imagenet64.main(config)
    (stage,) = stages
    assert stage.loss.label_dropout == 0.3
    plan = stage.plan
    assert (plan.iterations, plan.batch_size, plan.accumulate) == (2, 24, 2)
    assert (plan.learning_rate, plan.ema_decay, plan.flip) == (0.125, 0.5, True)
    teacher_imagenet64.main(dataclasses.replace(config, replay=Path("capsule.npz")))
    assert stages[-1].plan.replay == Path("capsule.npz")


def test_imagenets_settings_are_the_papers():
    preset = _stages.IMAGENET
    # Heek et al. 2024, sec. 4 and app. A; the shift and the rate of Hoogeboom 2023.
    assert preset.batch_size == 2048
    assert (preset.teacher_iterations, preset.iterations) == (700_000, 200_000)
    assert preset.anneal == (64.0, 1280.0, 100_000)
    assert (preset.learning_rate, preset.ema_decay) == (1e-4, 0.9999)
    assert preset.schedule == mc.Shifted(64, low=32, high=64)
    assert (preset.flip, preset.precision) == (True, "bfloat16")
    assert preset.weighting == "snr_plus_one"
    assert preset.teacher_step == "addim"


@pytest.mark.slow
def test_a_student_of_one_scale_needs_one_evaluation_a_step():
    training = Training(iterations=1)
    config = tiny_config(guidance=0.1, steps=1, training=training)
    table = cd_imagenet64.main(config)
    assert table.parents[1].name == "cd_emoji-demo_1_guidance_0.1"
    rows = rows_of(table)
    assert {row["guidance"] for row in rows} == {"0.1"}
    assert [row["evaluations"] for row in rows][-3:] == ["2", "2", "1"]
    line = (table.parents[1] / "student.jsonl").read_text()
    assert json.loads(line)["teacher_evaluations"] == 4
    mc.load_model(
        table.parents[1] / "student.eqx", _stages.denoiser_shapes(_stages.DEMO)
    )


def test_the_teacher_rows_of_a_guided_run_are_guided():
    teacher = _training.Trained(
        _stages.new_denoiser(_stages.DEMO, KEY), "given", None, None
    )
    guidance = mc.Guidance(0.5, (-2.0, 2.0))
    for row in _rows.teacher_rows(teacher, 2, guidance):
        assert isinstance(row.trained.model, mc.Guided)
        assert row.trained.model.guidance is guidance
        assert row.evaluations == 2 * row.steps
    for row in _rows.teacher_rows(teacher, 2, None):
        assert row.trained.model is teacher.model
        assert row.evaluations == row.steps


def test_a_teacher_without_a_null_class_gains_one_to_go_on_with():
    bare = _stages.with_label_dropout(_stages.DEMO, 0.0)
    model = _stages.new_denoiser(bare, KEY)
    path = Path("bare.eqx")
    mc.save_model(path, model)
    started = _given.start_from(path, _stages.DEMO)
    assert eqx.tree_equal(_given.start_from(path, bare), model)
    old, new = model.network.embed.classes, started.network.embed.classes
    np.testing.assert_array_equal(new[:9], old)
    np.testing.assert_allclose(new[9], np.mean(old, 0), atol=1e-7)
    whole = Path("whole.eqx")
    mc.save_model(whole, started)
    with pytest.raises(ValueError, match="has a null class"):
        _given.start_from(whole, bare)
    other = dataclasses.replace(_stages.DEMO, schedule=mc.Shifted(64, low=32, high=64))
    with pytest.raises(ValueError, match="its schedule is"):
        _given.start_from(path, other)


@pytest.mark.parametrize(
    "options",
    [
        {"substeps": 0},
        {"substeps": 2},
        {"kind": "midpoint", "substeps": 2},
        {"kind": "midpoint", "tolerance": 1e-3},
        {"kind": "euler", "tolerance": 1e-3},
        {"kind": "heun", "tolerance": -1.0},
        {"kind": "heun", "tolerance": 1e-3, "substeps": 2},
    ],
    ids=str,
)
def test_a_teacher_solver_refuses_options_that_it_does_not_have(options):
    with pytest.raises(ValueError, match=r"substeps|tolerance"):
        TeacherSolver(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": -0.5},
        {"guidance": float("inf")},
        {"guidance": 3.0, "guidance_range": (0.0, 2.0)},
        {"guidance_range": (-1.0, 2.0)},
        {"guidance_range": (1.0, 1.0), "guidance": 1.0},
        {"guidance_interval": (-1.0, 1.0)},
    ],
    ids=str,
)
def test_scales_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="guidance"):
        cd_imagenet64.Config(**options)


def test_teacher_recipe_writes_a_model_that_the_others_take(
    monkeypatch, few_images, capsys
):
    asked = []

    def emoji64(folder, *, split):
        asked.append((folder, split))
        return few_images

    monkeypatch.setattr(_stages.mc.data, "emoji64", emoji64)
    folder = Path("tarballs")
    config = teacher_imagenet64.Config(
        emoji64_dir=folder, out=Path("teacher"), iterations=1
    )
    path = teacher_imagenet64.main(config)
    assert asked == [(folder, "train")]
    assert "emoji of five vendors" in capsys.readouterr().out
    name = str(path)
    given, sha256 = _given.given_teacher(name, _stages.DEMO)
    assert given is not None
    assert given.weights == name
    assert len(str(sha256)) == 64
    assert json.loads((path.parent / "config.json").read_text())["batch_size"] == 8
    on = teacher_imagenet64.Config(
        start_from=path, out=Path("on"), iterations=1, learning_rate=1e-30
    )
    start, end = (
        mc.load_model(p, _stages.denoiser_shapes(_stages.DEMO))
        for p in (path, teacher_imagenet64.main(on))
    )
    for a, b in zip(*map(jax.tree.leaves, (start, end)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        teacher_imagenet64.main(teacher_imagenet64.Config(start_from=Path("nowhere")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "student_steps"),
        ({"seed": -1}, "seed is 0 or more, got -1"),
        ({"teacher": "nowhere.eqx"}, r"nowhere\.eqx"),
        ({"start_from": "nowhere.eqx"}, r"nowhere\.eqx"),
        ({"start_from": "bare.eqx"}, "has no null class"),
        ({"data_dir": Path("nowhere")}, "train_data_batch_1"),
        ({"evaluation": Evaluation(samples=1)}, "samples is 2 or more, got 1"),
        ({"evaluation": Evaluation(samples=17)}, "16 samples or fewer"),
        ({"evaluation": Evaluation(samples=4, seed=-1)}, "got -1"),
        ({"training": Training(iterations=0)}, "iterations is 1 or more, got 0"),
        ({"training": Training(batch_size=6)}, "multiple of 4"),
        ({"training": Training(batch_size=0)}, "batch_size is 1 or more"),
        ({"training": Training(label_dropout=1.5)}, r"in \[0, 1\], got 1\.5"),
        ({"training": Training(label_dropout=0.0)}, "has a null class"),
        ({"training": Training(learning_rate=0.0)}, "learning_rate is a positive"),
        ({"training": Training(teacher_iterations=3)}, "--teacher scratch"),
        (
            {"guidance": 0.5, "training": Training(label_dropout=0.0)},
            "needs a teacher with a null class",
        ),
        ({"training": Training(anneal=(16.0, 8.0, 240))}, "start=16.0, stop=8"),
        ({"training": Training(anneal=(16.0, math.inf, 240))}, "stop=inf"),
        ({"guidance": 0.5, "guidance_interval": (1.0, 0.0)}, "rises"),
        (
            {"teacher": "bare.eqx", "steps": 1},
            r"bare\.eqx has no null class: give a label dropout of 0",
        ),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(changes, message):
    bare = _stages.with_label_dropout(_stages.DEMO, 0.0)
    mc.save_model(Path("bare.eqx"), _stages.new_denoiser(bare, KEY))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cd_imagenet64.main(tiny_config(**changes))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_decay": 1.0}, r"ema_decay lies in \[0, 1\), got 1\.0"),
        ({"learning_rate": -1.0}, "learning_rate is a positive number, got -1"),
        ({"label_dropout": 2.0}, "share of examples"),
        ({"emoji64_dir": Path("a"), "data_dir": Path("b")}, "not both"),
    ],
    ids=str,
)
def test_bad_options_of_the_teacher_leave_no_folder(changes, message):
    config = teacher_imagenet64.Config(out=Path("teacher"), **changes)
    with pytest.raises(ValueError, match=message):
        teacher_imagenet64.main(config)
    assert not Path("teacher").exists()


@pytest.mark.slow
def test_a_run_that_another_program_trains_is_left_alone():
    config = teacher_imagenet64.Config(out=Path("teacher"), iterations=1)
    path = teacher_imagenet64.main(config)
    path.unlink()
    program = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]):\n    input()"
    lock = str(path.with_suffix(".lock"))
    with subprocess.Popen(
        [sys.executable, "-c", program, lock], stdin=subprocess.PIPE
    ) as other:
        while not locked(lock):
            assert other.poll() is None
        with pytest.raises(ValueError, match="another program trains in teacher"):
            teacher_imagenet64.main(config)
        assert not path.exists()
        other.kill()
    assert teacher_imagenet64.main(config) == path
    assert path.exists()


def test_a_part_of_imagenet_has_the_classes_that_it_has(few_images, monkeypatch):
    pixels, labels = few_images.pixels[:3], np.arange(3, dtype=np.int32)
    part = mc.data.Images(pixels, labels, ("n01", "n02", "n03"), "part")
    monkeypatch.setattr(_stages.mc.data, "imagenet64", lambda folder: part)
    preset, images = _stages.load(Path("part"))
    assert images.classes == part.classes
    classes = {**vars(preset.network), "classes": 1000}
    assert classes == vars(_stages.IMAGENET.network)
    assert preset.network.classes == 3


@pytest.mark.parametrize("recipe", [cd_imagenet64, teacher_imagenet64])
def test_devices_are_as_many_as_share_the_batch_of_the_data(recipe, monkeypatch):
    def start(*_, batch_size, **__):
        raise SystemExit(batch_size)

    for module in (_student, teacher_imagenet64):
        monkeypatch.setattr(module, "start", start)
    for data, size in ((Path("imagenet"), 2048), (None, 8)):
        with pytest.raises(SystemExit) as asked:
            recipe.main(recipe.Config(data_dir=data))
        assert asked.value.code == size


def test_a_run_on_other_data_or_from_another_model_is_refused(few_images, monkeypatch):
    first = teacher_imagenet64.Config(iterations=1, out=Path("first"))
    path = teacher_imagenet64.main(first)
    second = teacher_imagenet64.Config(iterations=1, out=Path("on"), start_from=path)
    teacher_imagenet64.main(second)
    model = mc.load_model(path, _stages.denoiser_shapes(_stages.DEMO))
    path.unlink()
    mc.save_model(path, jax.tree.map(lambda a: a + 1, model))
    with pytest.raises(ValueError, match="on holds a run with start_sha256="):
        teacher_imagenet64.main(second)
    student = tiny_config(out=Path("cd"))
    monkeypatch.setattr(_student, "train", lambda *_, **__: sys.exit("begun"))
    with pytest.raises(SystemExit, match="begun"):
        cd_imagenet64.main(student)
    pixels = few_images.pixels.copy()
    pixels[-1, -1, -1, -1] ^= 1
    for field, value in (
        ("pixels", pixels),
        ("labels", few_images.labels[::-1].copy()),
    ):
        other = dataclasses.replace(few_images, **{field: value})
        monkeypatch.setattr(_stages.mc.data, "openmoji", lambda other=other: other)
        with pytest.raises(ValueError, match="first holds a run with data_sha256="):
            teacher_imagenet64.main(first)
        with pytest.raises(ValueError, match="cd holds a run with data_sha256="):
            cd_imagenet64.main(student)


def test_two_programs_that_write_one_file_do_not_meet_in_its_parts(tmp_path):
    # In two containers both may be process 1, as here both are the same.
    path = tmp_path / "samples" / "result.json"
    with _runs.whole(path) as first:
        first.write_text("first")
        with _runs.whole(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        assert all(map(_runs.is_part, (first, second)))
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def locked(path: str) -> bool:
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except filelock.Timeout:
        return True


@pytest.mark.slow
def test_interpolation_turns_unit_noise_into_unit_noise(monkeypatch, capsys):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 20_000))
    for share in (0.25, 0.5):
        turned = interpolate.slerp(a, b, share)
        np.testing.assert_allclose(np.var(turned), 1.0, atol=0.03)
    np.testing.assert_allclose(interpolate.slerp(a, b, 0.0), a, atol=1e-12)
    np.testing.assert_allclose(interpolate.slerp(a, b, 1.0), b, atol=1e-12)
    np.testing.assert_allclose(interpolate.slerp(a, 2 * a, 0.5), 1.5 * a)
    # (cos, sin) of a third of a right angle.
    third = interpolate.slerp(np.eye(2)[0], np.eye(2)[1], 1 / 3)
    np.testing.assert_allclose(third, [np.sqrt(0.75), 0.5])

    monkeypatch.setattr(interpolate, "DEMO", _stages.DEMO)
    model = _stages.new_denoiser(_stages.DEMO, KEY)
    weight = jax.random.normal(KEY, model.network.head.weight.shape, jnp.float32)
    moved = eqx.tree_at(lambda m: m.network.head.weight, model, 0.01 * weight)
    mc.save_model(mc.EMOJI_TEACHER, moved)
    options = {"teacher": mc.EMOJI_TEACHER, "rows": 2, "frames": 3}
    path = interpolate.main(interpolate.Config(**options))
    assert path.read_bytes().startswith(b"\x89PNG")
    error = float(capsys.readouterr().out.split("decoded codes lie ")[1].split()[0])
    assert error < 0.01
    with pytest.raises(ValueError, match="there already"):
        interpolate.main(interpolate.Config(**options))
    with pytest.raises(ValueError, match="rows is at most"):
        interpolate.main(
            interpolate.Config(**options | {"rows": 99, "out": Path("b.png")})
        )


@pytest.mark.slow
def test_samples_are_drawn_once():
    path = samples.main(samples.Config(columns=2))
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="there already"):
        samples.main(samples.Config(columns=2))
    with pytest.raises(ValueError, match="columns is 1 or more, got 0"):
        samples.main(samples.Config(columns=0, out=Path("b.png")))


@pytest.mark.parametrize("recipe", [samples, interpolate])
@pytest.mark.parametrize("name", ["emoji", "emoji.npz"])
def test_a_picture_of_no_known_kind_is_refused_at_once(recipe, name, monkeypatch):
    for work in ("from_one_noise", "start_from"):
        monkeypatch.setattr(
            recipe, work, lambda *_: pytest.fail("too late"), raising=False
        )
    with pytest.raises(ValueError, match=rf"{name} is to end in one of .*\.png"):
        recipe.main(recipe.Config(out=Path(name)))


class Explodes(mc.AbstractLoss):
    """The loss is not finite from the fourth step on."""

    def __call__(self, model, example, *, step, key):
        out = jnp.sum(model(example.x, 0.5) ** 2)
        value = jnp.where(step >= 3, jnp.float32(jnp.nan), 1.0) * out
        return value, {"loss": value}


def stage(run: Path, images, **changes):
    """A stage of forty steps of a loss that dies."""
    plan = _training.Plan(40, 8, 1e-2, 0.9, 0, mc.make_mesh())
    run.mkdir(exist_ok=True)
    return _training.train(
        "m",
        run,
        Explodes(),
        mc.Denoiser(Gain(jnp.float32(0.1)), mc.Cosine()),
        images,
        dataclasses.replace(plan, **changes),
        grid=mc.uniform_grid(2),
        key=jax.random.key(0),
    )


def test_a_run_that_dies_leaves_a_capsule_and_the_command_that_opens_it(
    few_images, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["cd_imagenet64.py", "--steps", "2"])
    run = Path("dying")
    with pytest.raises(SystemExit) as stopped:
        stage(run, few_images)
    assert stopped.value.code == 1
    capsule = run / "m_capsule.npz"
    told = capsys.readouterr().err
    assert f"python cd_imagenet64.py --steps 2 --replay {capsule}" in told
    with np.load(capsule) as stored:
        step = int(stored["step"])
        batches = mc.data.batches(few_images, batch_size=8, seed=0, start=step - 1)
        batch = next(batches)
        np.testing.assert_array_equal(stored["x"], batch.x)
        np.testing.assert_array_equal(stored["label"], batch.label)
    assert not (run / "m.eqx").exists()
    with pytest.raises(SystemExit) as replayed:
        stage(run, few_images, replay=capsule)
    lines = str(replayed.value.code).splitlines()
    assert lines[0].startswith(f"step {step}:")
    assert sum("not finite" in line for line in lines) == 8
    np.save(run / "array.npy", np.zeros(1))
    (run / "cut.npz").write_bytes(capsule.read_bytes()[:99])
    (run / "empty.npz").touch()
    for name in ("m.jsonl", "array.npy", "cut.npz", "empty.npz", "absent.npz"):
        with pytest.raises(ValueError, match="is no capsule"):
            stage(run, few_images, replay=run / name)
    with pytest.raises(ValueError, match="newest checkpoint of step 0"):
        stage(Path("empty"), few_images, replay=capsule)
    with np.load(capsule) as stored:
        np.savez("other.npz", **{**stored, "stage": "other"})
    with pytest.raises(ValueError, match="of the stage other, and m is not finished"):
        stage(run, few_images, replay=Path("other.npz"))
    (run / "m.eqx").touch()
    with pytest.raises(ValueError, match="of the stage m, and m is finished"):
        stage(run, few_images, replay=capsule)


def test_training_draws_samples_and_logs_speed_as_it_goes(few_images):
    train_gain("seen", few_images)
    pictures = sorted(p.name for p in Path("seen/m_samples").iterdir())
    assert pictures == [f"{step:08d}.png" for step in range(10)]
    last = json.loads(Path("seen/m.jsonl").read_text().splitlines()[-1])
    assert last["images_per_second"] > 0
    assert last["step"] == 9


@pytest.mark.slow
def test_a_finished_run_goes_on_with_another_mesh_and_memory(few_images):
    table = cd_imagenet64.main(tiny_config())
    other = {"mesh": Mesh(data=2, fsdp=2), "memory": Memory(2, remat=True)}
    assert cd_imagenet64.main(tiny_config(**other)) == table
    with pytest.raises(ValueError, match=r"training\.precision=float32"):
        cd_imagenet64.main(
            tiny_config(training=Training(iterations=3, precision="bfloat16"))
        )


def test_a_picture_of_grey_images_is_grey(tmp_path):
    rng = np.random.default_rng(0)
    _pictures.draw({"a": rng.uniform(-1, 1, (3, 1, 8, 8))}, tmp_path / "a.png", "grey")
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert (drawn.max(-1) == drawn.min(-1)).all()
    assert len(np.unique(drawn)) > 50


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        (cd_imagenet64.Config, ("training", "evaluation", "mesh", "teacher-solver")),
        (ct_imagenet64.Config, ("training", "evaluation", "mesh")),
        (teacher_imagenet64.Config, ("mesh", "hosts", "memory")),
    ],
)
def test_help_gives_each_option_a_meaning_in_a_group(
    config, groups, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        tyro.cli(config, args=["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for group in groups:
        assert f"{group} options" in said
    words = "".join(c for c in said if c.isalnum())
    meanings = meanings_of(config)
    assert len(meanings) > 15
    for name, meaning in meanings.items():
        assert re.search(rf"--{name}[ ,]", said), name
        assert "".join(c for c in meaning if c.isalnum())[:20] in words, name


def meanings_of(config: type, prefix: str = "") -> dict[str, str]:
    """The text below each field of a class of options, by the option's name."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    texts = {
        field.target.id: below.value.value
        for field, below in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }
    found = {}
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            found |= meanings_of(hints[field.name], f"{name}.")
        elif field.name in config.__annotations__:
            assert field.name in texts, f"--{name} has no meaning"
            found[name] = texts[field.name]
    for base in config.__bases__:
        found |= meanings_of(base, prefix) if dataclasses.is_dataclass(base) else {}
    return found


def test_rows_of_an_interpolation_are_of_one_class_each(few_images):
    pairs = interpolate.pairs(few_images, rows=3, seed=0)
    labels = few_images.labels[pairs]
    assert (labels[:, 0] == labels[:, 1]).all()
    assert len(set(labels[:, 0])) == 3
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_the_floor_is_of_images_that_the_reference_has_not(few_images, monkeypatch):
    held, reference = [], []
    take = mc.data.Images.take

    def taken(self, rows):
        held.append(list(rows))
        return take(self, rows)

    def moments(network, images, rows):
        reference.extend(rows)
        raise SystemExit

    monkeypatch.setattr(mc.data.Images, "take", taken)
    monkeypatch.setattr(_compare, "data_moments", moments)
    options = {"training_seed": 0, "guidance": None, "samples": 9, "seed": 0}
    with pytest.raises(SystemExit):
        _compare.compare([], Path("run"), few_images, None, **options)
    (held,) = held
    assert len(held) == 9
    assert sorted([*held, *reference]) == list(range(len(few_images)))


def test_each_row_of_samples_is_of_the_model_that_it_names(monkeypatch):
    monkeypatch.setattr(mc, "emoji_teacher", lambda: "teacher")
    monkeypatch.setattr(mc, "emoji_student", lambda: "student")
    drawn = {}

    def from_one_noise(models, noise, labels, *, seed):
        drawn.update(models)
        raise SystemExit

    monkeypatch.setattr(samples, "from_one_noise", from_one_noise)
    with pytest.raises(SystemExit):
        samples.main(samples.Config(columns=2))
    assert len(drawn) == 3
    for name, (model, steps) in drawn.items():
        assert name == f"{model}, {steps} steps"
