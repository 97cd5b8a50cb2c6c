"""Stages that distillation and consistency training have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from _compare import compare, feature_network
from _given import given_student, given_teacher
from _machine import MACHINE, first, part, start
from _options import Config, filled
from _rows import Row, teacher_rows
from _runs import claim
from _stages import (
    WEIGHTINGS,
    Preset,
    computed,
    data_sha256,
    load,
    new_denoiser,
    preset_of,
    with_label_dropout,
)
from _training import Plan, train
from jax.sharding import Mesh

import mcmeqx as mc


def _plans(config: Config, plan: Any, preset: Preset, mesh: Mesh) -> tuple[Plan, Plan]:
    """How teacher and student train; ValueError for what would fail later."""
    options = plan.training
    mc.DiffusionLoss(label_dropout=options.label_dropout)
    shared: dict[str, Any] = {
        "batch_size": options.batch_size,
        "mesh": mesh,
        "accumulate": config.memory.accumulate,
        "flip": preset.flip,
        "replay": config.replay,
    }
    teacher = Plan(
        options.teacher_iterations,
        learning_rate=preset.teacher_learning_rate,
        ema_decay=preset.ema_decay,
        seed=plan.seed,
        **shared,
    )
    student = Plan(
        options.iterations,
        learning_rate=options.learning_rate,
        ema_decay=options.ema_decay,
        seed=plan.seed + 1,
        **shared,
    )
    return teacher, student


def run_student(
    kind: str,
    config: Config,
    make_teacher: Callable[[mc.Denoiser], mc.AbstractTeacher],
    *,
    named: tuple[str, ...] = (),
    guidance: mc.Guidance | None = None,
    guidance_range: tuple[float, float] | None = None,
    order: int = 1,
) -> Path:
    """Teacher, student, table and picture; every finished stage is kept.

    `named` ends the name of the folder if none is given. `guidance` is the teacher's,
    in the table too. With a `guidance_range` the student takes the scale as an input,
    and is measured at that of `guidance`. `order` is that of the student's targets.
    """
    mesh = start(
        config.mesh,
        config.hosts,
        batch_size=config.training.batch_size or preset_of(config.data_dir).batch_size,
        accumulate=config.memory.accumulate,
    )
    segments = mc.Segments(config.steps)
    preset, images = load(config.data_dir, config.emoji64_dir)
    plan = filled(config, preset, kind, *named)
    preset = with_label_dropout(preset, plan.training.label_dropout)
    preset = computed(preset, plan.training.precision, config.memory.remat)
    teacher_plan, student_plan = _plans(config, plan, preset, mesh)
    if guidance is not None and not plan.training.label_dropout:
        raise ValueError(
            f"guidance {guidance.scale} needs a teacher with a null class: give "
            "--training.label-dropout 0.1 and a teacher that was trained with it"
        )
    measured = {"samples": plan.evaluation.samples, "seed": plan.evaluation.seed}
    network = feature_network(images, **measured)
    teacher, sha256 = given_teacher(plan.teacher, preset)
    started, student_sha256 = given_student(plan.start_from, preset)
    if teacher is not None and config.training.teacher_iterations is not None:
        raise ValueError(
            f"--training.teacher-iterations {config.training.teacher_iterations} is "
            "for a teacher that is trained here, --teacher scratch; "
            f"{plan.teacher} is given"
        )
    start_steps, stop_steps, over = plan.training.anneal
    over = min(over, plan.training.iterations)
    annealed = mc.annealed_steps(start_steps, stop_steps, over)
    scale: Any = None if guidance is None else guidance.scale
    asked = None if guidance_range is None else scale
    later = ("evaluation", *MACHINE, "replay")
    later += () if asked is None else ("guidance",)
    made_of = {
        "data_sha256": data_sha256(images),
        "teacher_sha256": sha256,
        "student_sha256": student_sha256,
    }
    run = claim(plan.out, kind, plan, *later, **made_of)
    keys = jax.random.split(jax.random.key(plan.seed), 3)
    teacher = teacher or train(
        "teacher",
        run,
        mc.DiffusionLoss(label_dropout=preset.label_dropout),
        new_denoiser(preset, keys[0]),
        images,
        teacher_plan,
        grid=mc.uniform_grid(32),
        key=keys[1],
    )
    started = started or teacher.model
    student = train(
        "student",
        run,
        mc.MultistepConsistencyLoss(
            make_teacher(teacher.model),
            segments,
            annealed,
            WEIGHTINGS[plan.training.weighting],
            plan.training.distance,
            guidance_range,
            order,
        ),
        started if asked is None else mc.with_guidance_input(started),
        images,
        student_plan,
        grid=segments.grid(),
        guidance=asked,
        key=keys[2],
    )
    if plan.start_from != "teacher":
        student = student._replace(weights=f"this run, from {plan.start_from}")
    part()
    if not first():
        return run
    rows = [
        *teacher_rows(teacher, plan.steps, guidance),
        Row(f"student ({kind}), DDIM", student, mc.DDIM(), segments.grid(), asked),
    ]
    measured |= {"training_seed": plan.seed, "guidance": scale}
    return compare(rows, run, images, network, **measured)
