"""Each recipe runs whole on the tiniest network, resumes, and refuses bad input."""

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import _student
import cd_imagenet64
import ct_imagenet64
import teacher_imagenet64
from _student import Config, Evaluation, Training

from mcmeqx.nets import Stage, UViTConfig

pytestmark = pytest.mark.usefixtures("as_users_run", "tiny_demo")


@pytest.fixture
def tiny_demo(monkeypatch, tmp_path):
    """The demo's preset with a network and run that take seconds."""
    stages = (Stage("resnet", 8, 1), Stage("transformer", 16, 1))
    network = UViTConfig(64, stages, classes=9, embedding=16, head_width=8, patch=8)
    for recipe in (_student, teacher_imagenet64):
        load = recipe.load

        def tiny(*arguments, load=load):
            preset, images = load(*arguments)
            small = dataclasses.replace(
                preset, network=network, batch_size=8, teacher_iterations=3
            )
            return small, images

        monkeypatch.setattr(recipe, "load", tiny)
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    monkeypatch.chdir(tmp_path)


def tiny_config(**changes) -> Config:
    training = Training(teacher_iterations=3, iterations=3, batch_size=8)
    fields = {"steps": 2, "training": training, "evaluation": Evaluation(samples=9)}
    return Config(**(fields | changes))


def test_cd_makes_table_picture_and_checkpoints_then_finishes_again(capsys):
    table = cd_imagenet64.main(tiny_config())
    printed = capsys.readouterr().out
    assert "DEMO, NOT IMAGENET" in printed[:200]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["steps"]) for row in rows] == [
        ("data against data (floor)", "0"),
        ("student (cd), DDIM", "2"),
        ("teacher, DDIM", "256"),
        ("teacher, aDDIM", "256"),
        ("teacher, DDIM", "2"),
        ("teacher, aDDIM", "2"),
    ]
    assert {row["data"] for row in rows} == {"openmoji64"}
    assert {row["samples"] for row in rows} == {"9"}
    run = table.parent
    assert (run / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert not [p for p in run.rglob("*") if "imagenet" in p.name.lower()]
    models = {p: p.read_bytes() for p in run.glob("*.eqx")}
    assert {p.name for p in models} == {"teacher.eqx", "student.eqx"}
    before = table.read_text()
    assert cd_imagenet64.main(tiny_config()).read_text() == before
    assert models == {p: p.read_bytes() for p in models}
    with pytest.raises(ValueError, match="seed=0"):
        cd_imagenet64.main(tiny_config(seed=1))


def test_an_interrupted_student_ends_with_the_same_bits():
    whole = cd_imagenet64.main(tiny_config(out=Path("whole"))).parent

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        import _stages

        patch.setattr(_stages.mc, "save_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cd_imagenet64.main(tiny_config(out=Path("cut")))
    assert not (Path("cut") / "student.eqx").exists()
    cut = cd_imagenet64.main(tiny_config(out=Path("cut"))).parent
    for name in ("teacher.eqx", "student.eqx"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_ct_distils_from_a_given_teacher():
    teacher = teacher_imagenet64.main(
        teacher_imagenet64.Config(out=Path("teacher"), iterations=2, batch_size=8)
    )
    table = ct_imagenet64.main(tiny_config(teacher=str(teacher), steps=1))
    assert not (table.parent / "teacher.eqx").exists()
    samples = np.load(table.parent / "samples" / "student_(ct)_DDIM_1.npz")["x"]
    assert samples.shape == (9, 3, 64, 64)
    assert np.isfinite(samples).all()


def test_unreadable_data_and_bad_steps_are_refused_before_anything_is_written():
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match="train_data_batch_1"):
        cd_imagenet64.main(tiny_config(data_dir=Path("empty")))
    with pytest.raises(ValueError, match="student_steps"):
        cd_imagenet64.main(tiny_config(steps=0))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cd_imagenet64.main(tiny_config(teacher="nowhere.eqx"))
    assert not Path("runs").exists()
