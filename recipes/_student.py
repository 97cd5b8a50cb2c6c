"""Options and stages that distillation and consistency training have in common."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
from _compare import Row, compare, feature_network, teacher_rows
from _runs import claim, fill
from _stages import (
    Preset,
    Trained,
    check_training,
    denoiser_shapes,
    load,
    new_denoiser,
    train,
)

import mcmeqx as mc


@dataclass(frozen=True)
class Training:
    """How the student trains; None takes the preset of the demo or of ImageNet."""

    teacher_iterations: int | None = None
    """Steps of teacher training, when the teacher is trained here."""
    iterations: int | None = None
    """Steps of student training."""
    batch_size: int | None = None
    """Images per step."""
    learning_rate: float | None = None
    """Peak of Adam's learning rate for the student."""
    weighting: Literal["snr_plus_one", "sqrt_snr_plus_one"] = "snr_plus_one"
    """Loss weight; the paper's, or its square root, which is calmer."""
    distance: mc.PseudoHuber = field(default_factory=mc.PseudoHuber)
    """Distance between target and estimate."""


@dataclass(frozen=True)
class Evaluation:
    """How results are measured; a finished run can be measured again."""

    samples: int | None = None
    """Samples a row of the table; None takes the preset's."""
    seed: int = 0
    """Seed of noise, classes and the split of the data into floor and reference."""


@dataclass(frozen=True)
class Config:
    """Options of a student's run."""

    steps: int = 8
    """Segments of the student: its network evaluations per sample (1, 2, 4, ...)."""
    data_dir: Path | None = None
    """Folder of ImageNet 64x64; without it the run is a demo on emoji."""
    teacher: str | None = None
    """`embedded` is the package's emoji teacher, the demo's default; `scratch`, the
    default on ImageNet, trains one in the run folder; or the path of a teacher.eqx."""
    out: Path | None = None
    """Run folder; None is runs/<recipe>_<data>_<steps>. The same command resumes it."""
    seed: int = 0
    """Seed of weights, data order and training noise."""
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)


def _filled(config: Config, preset: Preset, kind: str) -> Any:
    names = ("teacher_iterations", "iterations", "batch_size", "learning_rate")
    defaults = {name: getattr(preset, name) for name in names}
    out = Path("runs") / f"{kind}_{preset.name}_{config.steps}"
    return replace(
        fill(config, teacher=preset.teacher, out=out),
        training=fill(config.training, **defaults),
        evaluation=fill(config.evaluation, samples=preset.samples),
    )


def _given_teacher(name: str, preset: Preset) -> tuple[Trained | None, str | None]:
    """A teacher that need not be trained, and the hash of its file."""
    if name == "scratch":
        return None, None
    if name == "embedded" and preset.teacher != "embedded":
        raise ValueError(
            "--teacher embedded is the demo's emoji teacher; with --data-dir give "
            "`scratch` or the path of a teacher.eqx"
        )
    path = mc.EMOJI_TEACHER if name == "embedded" else Path(name)
    model = mc.load_model(path, denoiser_shapes(preset))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Trained(model, name, None), sha256


def run_student(
    kind: str, config: Config, make_teacher: Callable[[mc.Denoiser], mc.AbstractTeacher]
) -> Path:
    """Teacher, student, table and picture; every finished stage is kept."""
    segments = mc.Segments(config.steps)
    preset, images = load(config.data_dir)
    plan = _filled(config, preset, kind)
    options, evaluation = plan.training, plan.evaluation
    check_training(
        options.batch_size,
        plan.seed,
        iterations=options.iterations,
        teacher_iterations=options.teacher_iterations,
    )
    measured = {"samples": evaluation.samples, "seed": evaluation.seed}
    network = feature_network(images, **measured)
    teacher, sha256 = _given_teacher(plan.teacher, preset)
    run = claim(plan.out, kind, plan, "evaluation", teacher_sha256=sha256)

    network_key, teacher_key, student_key = jax.random.split(
        jax.random.key(plan.seed), 3
    )
    shared = {"batch_size": options.batch_size, "ema_decay": preset.ema_decay}
    if teacher is None:
        teacher = train(
            "teacher",
            run,
            mc.DiffusionLoss(),
            new_denoiser(preset, network_key),
            images,
            iterations=options.teacher_iterations,
            learning_rate=preset.teacher_learning_rate,
            seed=plan.seed,
            key=teacher_key,
            **shared,
        )
    start, stop, over = preset.anneal
    loss = mc.MultistepConsistencyLoss(
        make_teacher(teacher.model),
        segments,
        mc.annealed_steps(start, stop, min(over, options.iterations)),
        getattr(mc, options.weighting),
        options.distance,
    )
    student = train(
        "student",
        run,
        loss,
        teacher.model,
        images,
        iterations=options.iterations,
        learning_rate=options.learning_rate,
        seed=plan.seed + 1,
        key=student_key,
        **shared,
    )
    rows = [
        *teacher_rows(teacher, plan.steps),
        Row(f"student ({kind}), DDIM", student, mc.DDIM(), segments.grid()),
    ]
    return compare(rows, run, images, network, training_seed=plan.seed, **measured)
