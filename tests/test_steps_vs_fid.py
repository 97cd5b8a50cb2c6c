"""The table of steps against quality: its cells, and a run that is cut and goes on."""

import csv
import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from named_samplers import samplers_of

import mcmeqx as mc
from mcmeqx.nets import Stage, UViTConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _chunks
import _evaluation
import _table_cells
import _table_data
import _table_models
import _table_plot
import _table_sheet
import _table_text
import steps_vs_fid
from _evaluation import tree_digest
from _stages import new_denoiser
from _table_cells import cells
from _table_models import student_of, teacher_of
from _training import Trained
from matplotlib.figure import Figure

pytestmark = pytest.mark.usefixtures("as_users_run")
BENCHMARKS = Path(steps_vs_fid.__file__).parent


def test_cells_are_distinct_and_hold_the_papers_rows():
    every = list(cells("ddim"))
    names = [cell.name for cell in every]
    assert len(set(names)) == len(names)
    students = [cell.student for cell in every if cell.student is not None]
    assert len({s.name for s in students}) == len(students)
    for method in ("CD", "CT", "CD, aDDIM teacher", "DDIM", "DPM-Solver++(2M)"):
        assert [c.evaluations for c in every if c.method == method][-5:] == (
            [1, 2, 4, 8, 16]
        )
    assert {"DDIM 256", "DDIM 512", "aDDIM, analytic x_var 512"} <= set(names)
    assert [c.evaluations for c in every if c.method == "Heun"] == [3, 7, 15]
    for cell in every:
        # Karras et al. 2022, sec. 3: two evaluations a step of Heun, one in the last.
        heun = cell.method == "Heun"
        assert cell.evaluations == (2 * cell.steps - 1 if heun else cell.steps)
        if cell.student is not None:
            assert cell.student.segments == cell.steps


@pytest.mark.parametrize(
    ("usual", "others"),
    [("ddim", {"aDDIM", "midpoint"}), ("midpoint", {"aDDIM", "DDIM"})],
)
def test_table_4_has_the_teacher_steps_that_are_not_the_usual_ones(usual, others):
    network = UViTConfig(8, (Stage("resnet", 4, 1),), channels=1)
    model = mc.Denoiser(network.build(key=jax.random.key(0)), mc.Cosine())
    taught = {
        cell.method: cell.student.teacher(model)
        for cell in cells(usual)
        if cell.student and cell.evaluations == 4
    }
    assert {m for m in taught if "teacher" in m} == {f"CD, {n} teacher" for n in others}
    steps = {"ddim": mc.DistillationTeacher, "midpoint": mc.MidpointTeacher}
    assert isinstance(taught["CD"], steps[usual])
    for name in others:
        teacher = taught[f"CD, {name} teacher"]
        assert isinstance(teacher, steps.get(name, mc.DistillationTeacher))
        # Heek et al. 2024, app. A.1: 0.75 of the squared error; DDIM has none of it.
        fraction = {"aDDIM": 0.75, "DDIM": 0.0}.get(name)
        assert getattr(teacher, "x_var_fraction", None) == fraction


def test_each_row_is_sampled_by_what_it_is_called(monkeypatch):
    table = mc.MeasuredVariance(jnp.linspace(0.0, 1.0, 3), jnp.ones(3))
    monkeypatch.setattr(_table_cells, "_table", lambda model, images: table)
    samplers = samplers_of(table)
    seen = set()
    for cell in cells("ddim"):
        # The paper samples students by DDIM.
        name = "DDIM" if cell.student else cell.method
        assert tree_digest(cell.sampler(None, None)) == tree_digest(samplers[name])
        seen.add(name)
    assert seen == set(samplers)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A set of 80 grey images, a network that trains in no time, and small chunks."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (80, 8, 8, 1), np.uint8)
    labels = rng.integers(0, 2, 80).astype(np.int32)
    images = mc.data.Images(pixels, labels, ("a", "b"), "noise")
    preset = dataclasses.replace(
        _table_data.GREY32,
        network=UViTConfig(8, (Stage("resnet", 4, 1),), channels=1, classes=2),
        teacher_iterations=2,
        iterations=2,
        batch_size=4,
    )
    made = _table_data.ImageSet(preset, images, tmp_path / "teacher.eqx")
    monkeypatch.setattr(_table_data, "fashion_mnist", lambda folder: made)
    monkeypatch.setattr(_chunks, "CHUNK", 6)
    full, fewer = mc.metrics.EfficientNetLite0.load, {None: 2, 3: 1}
    load = "mcmeqx.metrics.EfficientNetLite0.load"
    monkeypatch.setattr(load, lambda blocks: full(fewer[blocks]))
    monkeypatch.chdir(tmp_path)
    return steps_vs_fid.Config(
        only=("CD 2", "aDDIM, measured x_var 2"), samples=10, seeds=2, out=tmp_path
    )


@pytest.mark.slow
def test_a_table_that_is_cut_goes_on_and_measures_nothing_twice(tiny, monkeypatch):
    table = steps_vs_fid.main(tiny)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for method in ("CD", "aDDIM, measured x_var") for seed in "01"
    ]
    for column in ("frechet", "floor", "frechet_block3", "floor_block3"):
        assert all(float(row[column]) > 0 for row in rows)
        assert len({row[column] for row in rows}) == (1 if "floor" in column else 4)
    assert all(row["frechet"] != row["frechet_block3"] for row in rows)
    assert {row["samples"] for row in rows} == {"10"}
    assert {row["reference_samples"] for row in rows} == {"80"}
    for picture in ("steps_vs_fid_fashion_mnist", "steps_vs_fid_fashion_mnist_samples"):
        found = table.with_name(f"{picture}.png").read_bytes()
        assert found.startswith(b"\x89PNG")
    before = table.read_bytes()

    real, calls = _evaluation.as_bytes, []

    def as_bytes(x):
        calls.append(len(x))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(x)

    monkeypatch.setattr(_evaluation, "as_bytes", as_bytes)
    steps_vs_fid.main(tiny)
    assert not calls
    other = dataclasses.replace(tiny, work=Path("again"), out=Path("again"))
    with pytest.raises(KeyboardInterrupt):
        steps_vs_fid.main(other)
    assert calls == [6, 4, 6, 4]
    again = steps_vs_fid.main(other)
    assert calls[4:] == [4, 6, 4, 6, 4]
    with again.open(newline="") as file:
        assert list(csv.DictReader(file)) == rows
    assert table.read_bytes() == before


@pytest.mark.usefixtures("tiny")
def test_a_teacher_that_lies_in_a_file_is_not_trained(tmp_path):
    images = _table_data.fashion_mnist(None)
    model = new_denoiser(images.preset, jax.random.key(3))
    mc.save_model(images.teacher, model)
    found = teacher_of(images, tmp_path / "work", 0)
    assert tree_digest(found) == tree_digest(model)
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_rows_of_another_plan_are_added_where_the_samples_are_the_same(
    tiny, monkeypatch
):
    images = _table_data.fashion_mnist(None)
    mc.save_model(images.teacher, new_denoiser(images.preset, jax.random.key(3)))
    config = dataclasses.replace(tiny, only=("DDIM 1",), seeds=1)
    steps_vs_fid.main(config)
    # The teacher's file does not depend on it, its rows' plan does.
    preset = dataclasses.replace(images.preset, batch_size=8)
    other = dataclasses.replace(images, preset=preset)
    monkeypatch.setattr(_table_data, "fashion_mnist", lambda folder: other)
    table = steps_vs_fid.main(config)
    assert steps_vs_fid.main(config) == table
    with table.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert {k for k in first if first[k] != second[k]} == {"plan", "batch_size"}


@pytest.mark.slow
def test_the_sheet_has_a_row_for_each_trained_student(tiny, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        _table_sheet, "draw", lambda rows, path, title: drawn.update(rows)
    )
    taken, real = [], _table_sheet.from_one_noise

    def from_one_noise(models, *arguments):
        taken.append([steps for _, steps in models.values()])
        return real(models, *arguments)

    monkeypatch.setattr(_table_sheet, "from_one_noise", from_one_noise)
    steps_vs_fid.main(dataclasses.replace(tiny, only=("CD 2", "CD 1"), seeds=1))
    assert taken == [[256, 8, 2, 1]]
    assert list(drawn) == [
        "teacher, 256 steps",
        "teacher, 8 steps",
        "student, 2",
        "student, 1",
    ]
    assert all(x.shape == (2, 1, 8, 8) for x in drawn.values())
    ends = list(drawn.values())
    assert all(np.any(ends[i] != ends[j]) for i in range(4) for j in range(i))
    # A student of a former plan, which nobody asks for, does not stop the others.
    Path("runs/table/fashion_mnist/seed_0/cd_1/config.json").write_text("{}")
    table = tiny.out / "steps_vs_fid_fashion_mnist.csv"
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join(row for row in rows if ",CD,1," not in row))
    drawn.clear()
    steps_vs_fid.main(dataclasses.replace(tiny, only=("CD 2",), seeds=1))
    assert list(drawn)[2:] == ["student, 2"]


@pytest.mark.slow
def test_a_sheet_stays_where_a_student_of_the_table_lies_elsewhere(tiny, capsys):
    table = steps_vs_fid.main(dataclasses.replace(tiny, only=("CD 2",), seeds=1))
    picture = table.with_name(f"{table.stem}_samples.png")
    before = picture.read_bytes()
    steps_vs_fid.main(dataclasses.replace(tiny, only=("CD 1",), seeds=1))
    assert picture.read_bytes() != before
    before = picture.read_bytes()
    Path("runs/table/fashion_mnist/seed_0/cd_2").rename("elsewhere")
    steps_vs_fid.main(dataclasses.replace(tiny, only=("DDIM 1",), seeds=1))
    assert picture.read_bytes() == before
    assert f"{picture} stays: CD 2 lie in another --work" in capsys.readouterr().out
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join(row for row in rows if ",CD," not in row))
    steps_vs_fid.main(dataclasses.replace(tiny, only=("DDIM 1",), seeds=1))
    assert picture.read_bytes() == before


@pytest.mark.slow
def test_seeds_data_and_teachers_are_told_apart(tiny, tmp_path, monkeypatch, capsys):
    def measured(images=None, seed=0, samples=10):
        images = images or _table_data.fashion_mnist(None)
        with monkeypatch.context() as patch:
            patch.setattr(_table_data, "fashion_mnist", lambda folder: images)
            one = {"only": ("CD 1", "DDIM 1"), "seeds": 1, "seed": seed}
            one |= {"samples": samples}
            table = steps_vs_fid.main(dataclasses.replace(tiny, **one))
        shown = [s for s in capsys.readouterr().out.splitlines() if s[:3] == "| C"]
        rows = steps_vs_fid.read_rows(table, steps_vs_fid.COLUMNS)
        return [(row["method"], row["training_seed"]) for row in rows], shown

    images = _table_data.fashion_mnist(None)
    both = [("CD", "0"), ("DDIM", "0")]
    assert measured()[0] == both
    # A trained teacher has a seed of its own, and so have its students.
    both += [("CD", "1"), ("DDIM", "1")]
    first = measured(seed=1)
    assert first[0] == both
    # One that lies in a file has not, and is not the one before.
    mc.save_model(images.teacher, new_denoiser(images.preset, jax.random.key(3)))
    with pytest.raises(ValueError, match=r"cd_1 holds a run with teacher_sha256="):
        measured()
    shutil.rmtree("runs")
    both += [("CD", "0"), ("DDIM", "0")]
    found, shown = measured()
    assert found == both
    both += [("CD", "1")]
    picture = tiny.out / "steps_vs_fid_fashion_mnist.png"
    before = picture.read_bytes()
    assert measured(seed=1)[0] == both
    assert picture.read_bytes() == before
    turned = dataclasses.replace(images.images, labels=images.images.labels[::-1])
    other = dataclasses.replace(images.images, pixels=images.images.pixels[::-1])
    other = dataclasses.replace(images, images=other)
    for wrong in (other, dataclasses.replace(images, images=turned)):
        with pytest.raises(ValueError, match=r"cd_1 holds a run with images_sha256="):
            measured(wrong, samples=9)
    shutil.rmtree("runs/table/fashion_mnist/seed_0")
    assert measured(other)[0] == [*both, ("CD", "0"), ("DDIM", "0")]
    shutil.rmtree("runs")
    assert measured() == ([*both, ("CD", "0"), ("DDIM", "0")], shown)


def test_rows_of_another_training_seed_are_not_mixed_in(tiny):
    images = _table_data.fashion_mnist(None)
    (cell,) = (c for c in cells("ddim") if c.name == "CD 1")
    first, again, other = (
        steps_vs_fid._key(
            steps_vs_fid._about(cell, images, "sha256", steps_vs_fid.Config(seed=seed))
        )
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_what_cannot_become_a_table_is_refused_before_the_data(tiny, monkeypatch):
    monkeypatch.setattr(_table_data, "fashion_mnist", lambda _: pytest.fail("too late"))
    with pytest.raises(ValueError, match="seeds is 1 or more, got 0"):
        steps_vs_fid.main(dataclasses.replace(tiny, seeds=0))
    with pytest.raises(ValueError, match="seed is 0 or more, got -2"):
        steps_vs_fid.main(dataclasses.replace(tiny, seed=-2))
    (tiny.out / "steps_vs_fid_fashion_mnist.csv").write_text("a,b\r\n")
    with pytest.raises(ValueError, match="other columns"):
        steps_vs_fid.main(tiny)


def test_the_text_of_a_table_is_the_mean_and_range_of_each_cell():
    rows = [
        {"method": "CD", "evaluations": n, "frechet": value}
        for n, value in (("8", "1"), ("8", "2"), ("8", "6"), ("16", "0.125"))
    ]
    rows.append({"method": "DDIM", "evaluations": "8", "frechet": "7"})
    assert _table_text.text(rows).splitlines() == [
        "| evaluations | 8 | 16 |",
        "| --- | --- | --- |",
        "| CD | 3.00 (1.00 to 6.00) | 0.12 (0.12 to 0.12) |",
        "| DDIM | 7.00 (7.00 to 7.00) |  |",
    ]


@pytest.mark.parametrize("floor", ["3", ""])
def test_the_plot_draws_what_there_is(tmp_path, floor):
    common = {"data": "d", "samples": "9", "network": "n", "evaluations": "8"}
    values = {"frechet": "7", "frechet_block3": "1"}
    floors = {"floor": floor, "floor_block3": floor}
    rows = [common | values | floors | {"method": m} for m in ("CD", "DDIM")]
    _table_plot.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_students_plan_does_not_bind_the_teacher(tiny, tmp_path):
    images = _table_data.fashion_mnist(None)
    first = teacher_of(images, tmp_path, 0)
    other_steps = {"iterations": 3, "data_anneal": (2.0, 3.0, 1)}
    longer = dataclasses.replace(
        images, preset=dataclasses.replace(images.preset, **other_steps)
    )
    assert tree_digest(teacher_of(longer, tmp_path, 0)) == tree_digest(first)
    other = dataclasses.replace(
        images, preset=dataclasses.replace(images.preset, teacher_iterations=3)
    )
    with pytest.raises(ValueError, match="teacher_iterations=2"):
        teacher_of(other, tmp_path, 0)
    assert longer.plan("teacher") == images.plan("teacher")
    plans = {i.plan(t) for i in (images, longer, other) for t in ("teacher", "cd")}
    assert len(plans) == 5


def test_each_student_is_taught_by_targets_of_its_order(tiny, tmp_path, monkeypatch):
    images = _table_data.fashion_mnist(None)
    taught = {}

    def train(name, run, loss, model, *_, **__):
        steps = (float(loss.teacher_steps(i)) for i in (0, 3000))
        taught[run.name] = (loss.order, *steps)
        return Trained(model, "this run", 1, 1.0)

    monkeypatch.setattr(_table_models, "train", train)
    model = new_denoiser(images.preset, jax.random.key(0))
    for cell in cells("ddim"):
        if cell.student is not None and cell.evaluations == 2:
            student_of(cell.student, model, images, tmp_path, 0)
    assert taught.pop("ct_second_2") == (2, 16.0, 32.0)
    constant = {f"cd_constant_{n}_2": (1, float(n), float(n)) for n in (32, 64, 256)}
    others = dict.fromkeys(taught, (1, 16.0, 32.0))
    assert taught == others | constant


def test_students_from_data_may_have_teacher_steps_of_their_own():
    images = _table_data.fashion_mnist(None)
    same = images.plan("ct")
    assert same == images.plan("cd")
    preset = dataclasses.replace(images.preset, data_anneal=(64.0, 128.0, 9))
    own = dataclasses.replace(images, preset=preset)
    assert own.plan("cd") == same
    assert own.plan("ct") != same
    assert preset.training(from_data=True).anneal == (64.0, 128.0, 9)
    assert preset.training(from_data=False) == preset
    students = [c.student for c in cells("ddim") if c.student]
    from_data = {student.name for student in students if student.from_data}
    kinds = ("ct", "ct_second")
    assert from_data == {f"{kind}_{n}" for kind in kinds for n in (1, 2, 4, 8, 16)}


@pytest.mark.parametrize(
    ("name", "teacher"),
    [
        ("fashion_mnist", BENCHMARKS / "fashion_mnist_teacher.eqx"),
        ("emoji64", mc.EMOJI_TEACHER),
    ],
)
def test_the_table_that_lies_there_is_of_the_presets(name, teacher):
    images = _table_data.ImageSet(_table_data.PRESETS[name], None, teacher)
    table = BENCHMARKS / f"steps_vs_fid_{name}.csv"
    rows = steps_vs_fid.read_rows(table, steps_vs_fid.COLUMNS)
    for method, taught in (("CD", "cd"), ("CT", "ct"), ("DDIM", "teacher")):
        of_today = [
            int(row["evaluations"])
            for row in rows
            if row["method"] == method and row["plan"] == images.plan(taught)
        ]
        for evaluations in (1, 2, 4, 8, 16):
            assert of_today.count(evaluations) == 3


@pytest.mark.slow
def test_rows_of_another_plan_or_number_are_kept_and_not_mixed_in(tiny, capsys):
    config = dataclasses.replace(tiny, only=("DDIM 1", "CD 1"), seeds=1)
    table = steps_vs_fid.main(config)

    def shown():
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith("|")]

    said = shown()
    assert sum(line.startswith("| CD |") for line in said) == 2
    images = _table_data.fashion_mnist(None)
    longer = dataclasses.replace(images.preset, iterations=3)
    images = dataclasses.replace(images, preset=longer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_table_data, "fashion_mnist", lambda folder: images)
        other = dataclasses.replace(config, work=Path("longer"))
        steps_vs_fid.main(other)
    more = dataclasses.replace(config, samples=11, only=("DDIM 1",))
    pictures = [table.with_suffix(".png"), table.with_name(f"{table.stem}_samples.png")]
    before = [picture.read_bytes() for picture in pictures]
    steps_vs_fid.main(more)
    assert f"{pictures[0]} stays: " in capsys.readouterr().out
    assert [picture.read_bytes() for picture in pictures] == before
    rows = steps_vs_fid.read_rows(table, steps_vs_fid.COLUMNS)
    found = [(r["method"], r["iterations"], r["samples"]) for r in rows]
    assert found == [
        ("CD", "2", "10"),
        ("DDIM", "2", "10"),
        ("CD", "3", "10"),
        ("DDIM", "2", "11"),
    ]
    capsys.readouterr()
    steps_vs_fid.main(config)
    assert shown() == said


def test_a_cell_that_is_not_there_is_refused(tiny):
    wrong = dataclasses.replace(tiny, only=("CD 3",))
    with pytest.raises(ValueError, match=r"no cell \['CD 3'\]; there are DDIM 256"):
        steps_vs_fid.main(wrong)
    assert not Path("runs").exists()
    with pytest.raises(ValueError, match="--folder"):
        _table_data.emoji64(None)


def test_a_cell_is_measured_of_its_model_on_its_grid_with_its_seeds_labels(
    tiny, monkeypatch
):
    asked, trained = [], []

    def evaluate(model, sampler, grid, *, labels, seed, against, **_):
        asked.append((model, len(grid) - 1, seed, labels.tolist()))
        names = [data.network.name for data in against]
        return [{"frechet": i + 1.0, "network": n} for i, n in enumerate(names)]

    def student(of, teacher, images, work, seed):
        trained.append((of.name, teacher, seed))
        return of.name

    monkeypatch.setattr(steps_vs_fid, "evaluate", evaluate)
    monkeypatch.setattr(steps_vs_fid, "student_of", student)
    monkeypatch.setattr(steps_vs_fid, "teacher_of", lambda *a: f"teacher {a[2]}")
    monkeypatch.setattr(steps_vs_fid, "plot", lambda *_: None)
    monkeypatch.setattr(steps_vs_fid, "sheet", lambda *_: None)
    only = ("CT 4", "Heun 7", "DDIM 1")
    table = steps_vs_fid.main(dataclasses.replace(tiny, only=only, seed=3))
    images = _table_data.fashion_mnist(None).images
    labels = [_evaluation.drawn_labels(images.labels, 10, s).tolist() for s in (0, 1)]
    assert labels[0] != labels[1]
    # Seven evaluations are four steps of Heun.
    measured = (("ct_4", 4), ("teacher 3", 1), ("teacher 3", 4))
    assert asked == [(m, n, s, labels[s]) for m, n in measured for s in (0, 1)]
    assert trained == [("ct_4", "teacher 3", 3)]
    # The distance of the whole network comes first, that of early blocks beside it.
    for row in steps_vs_fid.read_rows(table, steps_vs_fid.COLUMNS):
        assert (row["frechet"], row["frechet_block3"]) == ("1.0", "2.0")
        assert row["network"] == mc.metrics.EfficientNetLite0.load(None).name


def with_preset(**changes):
    images = _table_data.fashion_mnist(None)
    preset = dataclasses.replace(images.preset, **changes)
    return dataclasses.replace(images, preset=preset)


def test_rows_say_the_plan_and_the_seed_of_their_model(tiny):
    images = with_preset(data_anneal=(64.0, 128.0, 9))
    mc.save_model(images.teacher, new_denoiser(images.preset, jax.random.key(3)))
    config = dataclasses.replace(tiny, seed=2)
    every = {cell.name: cell for cell in cells("ddim")}
    plans = set()
    # The teacher that there is was trained from no seed of this table's.
    for name, taught, seed in (
        ("CT 2", "ct", 2),
        ("CD 2", "cd", 2),
        ("DDIM 2", "teacher", 0),
    ):
        about = steps_vs_fid._about(every[name], images, "sha256", config)
        assert (about["plan"], about["training_seed"]) == (images.plan(taught), seed)
        plans.add(about["plan"])
    assert len(plans) == 3


def test_each_student_is_trained_as_the_preset_says(tiny, tmp_path, monkeypatch):
    images = with_preset(
        data_anneal=(64.0, 128.0, 9), iterations=5, teacher_iterations=7
    )
    taught = {}

    def train(name, run, loss, model, _, plan, *, grid, key):
        taught[run.name] = (
            loss.segments.student_steps,
            len(grid) - 1,
            loss.weighting,
            *(float(loss.teacher_steps(step)) for step in (0, 3000)),
            plan.iterations,
            plan.learning_rate,
        )
        return Trained(model, "this run", 1, 1.0)

    monkeypatch.setattr(_table_models, "train", train)
    model = new_denoiser(images.preset, jax.random.key(0))
    for cell in cells("ddim"):
        if cell.name in ("CD 4", "CT 2"):
            student_of(cell.student, model, images, tmp_path, 0)
    rate, weighting = images.preset.learning_rate, mc.sqrt_snr_plus_one
    assert rate != images.preset.teacher_learning_rate
    assert taught == {
        "cd_4": (4, 4, weighting, 16.0, 32.0, 5, rate),
        "ct_2": (2, 2, weighting, 64.0, 128.0, 5, rate),
    }


def test_a_teacher_without_a_file_is_trained_as_the_preset_says(
    tiny, tmp_path, monkeypatch
):
    taught = with_preset(teacher_iterations=7, label_dropout=0.25)
    images = dataclasses.replace(taught, teacher=tmp_path / "none.eqx")
    asked = []

    def train(name, run, loss, model, data, plan, *, grid, key):
        asked.append((run.name, type(loss), loss.label_dropout, data, plan, key))
        return Trained(model, "this run", 1, 1.0)

    drawn = []
    monkeypatch.setattr(_table_models, "train", train)
    monkeypatch.setattr(
        _table_models, "new_denoiser", lambda preset, key: drawn.append(key)
    )
    for seed in (3, 4):
        teacher_of(images, tmp_path / str(seed), seed)
    preset = images.preset
    assert preset.learning_rate != preset.teacher_learning_rate
    for (*loss, data, plan, _), seed in zip(asked, (3, 4), strict=True):
        assert loss == ["teacher", mc.DiffusionLoss, 0.25]
        assert data is images.images
        assert (plan.iterations, plan.learning_rate, plan.seed) == (
            (7, preset.teacher_learning_rate, seed)
        )
        assert (plan.batch_size, plan.ema_decay) == (
            (preset.batch_size, preset.ema_decay)
        )
    keys = [*drawn, *(key for *_, key in asked)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4


def test_a_panel_draws_means_of_its_own_metric_and_their_range():
    floors = {"floor": "4", "floor_block3": "0.5"}
    rows = [
        {"method": "CD", "evaluations": n, "frechet": "9", "frechet_block3": v} | floors
        for n, v in (("8", "1"), ("8", "2"), ("8", "6"), ("4", "10"))
    ]
    axes = Figure().subplots()
    _table_plot._panel(axes, rows, *_table_plot.EARLY)
    (drawn,) = axes.containers
    x, y = drawn.lines[0].get_data()
    assert (list(x), list(y)) == ([4, 8], [10.0, 3.0])
    assert drawn.lines[2][0].get_segments()[1].tolist() == [[8, 1], [8, 6]]


@pytest.mark.parametrize("name", ["fashion_mnist", "emoji64"])
def test_models_learn_from_images_with_headroom_that_are_not_held_out(
    name, monkeypatch
):
    asked = {}
    pixels, labels = np.zeros((4, 32, 32, 1), np.uint8), np.zeros(4, np.int32)
    made = mc.data.Images(pixels, labels, ("a",), "few")

    def images(folder, *, split="train", **_):
        asked["split"] = split
        return made

    monkeypatch.setattr(mc.data, name, images)
    found = getattr(_table_data, name)(Path("here"))
    assert asked == {"split": "train"}
    assert found.images.headroom == found.preset.headroom == 0.1
    assert found.teacher.exists()
