"""The table's models: each trained once, resumed if cut, kept in the work folder."""

from pathlib import Path
from typing import Any

import jax
from _measured_data import digest
from _runs import claim
from _stages import WEIGHTINGS, denoiser_shapes, new_denoiser
from _table_cells import Student
from _table_data import STUDENTS, ImageSet
from _training import Plan, train

import mcmeqx as mc


def _plan(images: ImageSet, iterations: int, learning_rate: float, seed: int) -> Plan:
    preset = images.preset
    return Plan(
        iterations,
        preset.batch_size,
        learning_rate,
        preset.ema_decay,
        seed,
        mc.make_mesh(),
    )


def _made_from(images: ImageSet, seed: int) -> dict[str, Any]:
    """What a model depends on beside its preset."""
    found = digest(images.images.pixels, images.images.labels)
    return {"seed": seed, "images_sha256": found}


def teacher_of(images: ImageSet, work: Path, seed: int) -> mc.Denoiser:
    """The diffusion model: that of the committed table, or one that is trained here."""
    preset = images.preset
    if images.teacher.exists():
        return mc.load_model(images.teacher, denoiser_shapes(preset))
    network_key, key = jax.random.split(jax.random.key(seed))
    plan = _plan(images, preset.teacher_iterations, preset.teacher_learning_rate, seed)
    about = _made_from(images, seed)
    run = claim(work / "teacher", "table", preset, "samples", *STUDENTS, **about)
    model = new_denoiser(preset, network_key)
    loss = mc.DiffusionLoss(label_dropout=preset.label_dropout)
    grid = mc.uniform_grid(32)
    return train(
        "teacher", run, loss, model, images.images, plan, grid=grid, key=key
    ).model


def is_trained(student: Student, work: Path) -> bool:
    """Whether `student_of` has nothing left to train."""
    return (work / student.name / "student.eqx").exists()


def student_of(
    student: Student, teacher: mc.Denoiser, images: ImageSet, work: Path, seed: int
) -> mc.Denoiser:
    """A consistency model that starts from the teacher."""
    preset = images.preset.training(from_data=student.from_data)
    plan = _plan(images, preset.iterations, preset.learning_rate, seed + 1)
    # data_anneal has gone into anneal.
    about = _made_from(images, seed) | {"teacher_sha256": images.teacher_sha256}
    run = claim(work / student.name, "table", preset, "samples", "data_anneal", **about)
    start, stop, over = preset.anneal
    segments = mc.Segments(student.segments)
    loss = mc.MultistepConsistencyLoss(
        student.teacher(teacher),
        segments,
        mc.annealed_steps(student.constant or start, student.constant or stop, over),
        WEIGHTINGS[preset.weighting],
        order=student.order,
    )
    return train(
        "student",
        run,
        loss,
        teacher,
        images.images,
        plan,
        grid=segments.grid(),
        key=jax.random.key(seed + 1),
    ).model
