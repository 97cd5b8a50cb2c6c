"""The table of steps against quality: its cells, and a run that is cut and goes on."""

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

import mcmeqx as mc
from mcmeqx.nets import Stage, UViTConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _chunks
import _evaluation
import _table_data
import steps_vs_fid
from _table_cells import cells

pytestmark = pytest.mark.usefixtures("as_users_run")


def test_cells_are_distinct_and_hold_the_papers_rows():
    every = list(cells())
    names = [cell.name for cell in every]
    assert len(set(names)) == len(names)
    students = [cell.student for cell in every if cell.student is not None]
    assert len({s.name for s in students}) == len(students)
    for method in ("CD", "CT", "CD, DDIM teacher", "DDIM", "DPM-Solver++(2M)"):
        assert [c.evaluations for c in every if c.method == method][-5:] == (
            [1, 2, 4, 8, 16]
        )
    assert {"DDIM 256", "DDIM 512", "aDDIM, analytic x_var 512"} <= set(names)
    assert "Heun 1" not in names
    for cell in every:
        cost = 2 if cell.method == "Heun" else 1
        assert cell.evaluations == cost * cell.steps
        if cell.student is not None:
            assert cell.student.segments == cell.steps


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
    made = _table_data.ImageSet(preset, images)
    monkeypatch.setattr(_table_data, "fashion_mnist", lambda folder: made)
    monkeypatch.setattr(_chunks, "CHUNK", 6)
    full = mc.metrics.EfficientNetLite0.load
    monkeypatch.setattr(mc.metrics.EfficientNetLite0, "load", lambda: full(2))
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
    assert all(float(row["frechet"]) > 0 for row in rows)
    assert {row["samples"] for row in rows} == {"10"}
    assert {row["reference_samples"] for row in rows} == {"80"}
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
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


def test_a_cell_that_is_not_there_is_refused(tiny):
    wrong = dataclasses.replace(tiny, only=("CD 3",))
    with pytest.raises(ValueError, match=r"no cell \['CD 3'\]; there are DDIM 256"):
        steps_vs_fid.main(wrong)
    assert not Path("runs").exists()
    with pytest.raises(ValueError, match="--folder"):
        _table_data.emoji64(None)
