"""Options and stages that distillation and consistency training have in common."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
from _compare import compare, feature_network
from _rows import Row, teacher_rows
from _runs import claim, fill
from _stages import (
    Preset,
    Trained,
    check_training,
    given,
    load,
    new_denoiser,
    train,
    with_label_dropout,
)

import mcmeqx as mc


@dataclass(frozen=True)
class Training:
    """How the student trains. None takes what suits the data."""

    teacher_iterations: int | None = None
    """Steps of a teacher that is trained here; None is 600 in the demo and 700,000 on
    ImageNet."""
    label_dropout: float | None = None
    """Share of the teacher's training examples without their class, as guidance needs
    it; above 0 the network has a null class, as that of --teacher must. None is 0.1 in
    the demo and 0 on ImageNet."""
    iterations: int | None = None
    """Steps of student training; None is 500 in the demo and 200,000 on ImageNet."""
    batch_size: int | None = None
    """Images per step; None is 16 in the demo and 2048 on ImageNet."""
    learning_rate: float | None = None
    """Peak of Adam's learning rate for the student; None is 5e-4 in the demo and 1e-4
    on ImageNet."""
    weighting: Literal["snr_plus_one", "sqrt_snr_plus_one"] = "snr_plus_one"
    """Loss weight; the paper's, or its square root, which is calmer."""
    distance: mc.PseudoHuber = field(default_factory=mc.PseudoHuber)
    """Distance between target and estimate."""


@dataclass(frozen=True)
class Evaluation:
    """How results are measured; a finished run can be measured again."""

    samples: int | None = None
    """Samples a row of the table; None is 96 in the demo and 50,000 on ImageNet."""
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
    """Run folder; None is runs/<recipe>_<data>_<steps>, and more for a teacher's solver
    and guidance. The same command resumes it."""
    seed: int = 0
    """Seed of weights, data order and training noise."""
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)


def _filled(config: Config, preset: Preset, kind: str, *more: str) -> Any:
    names = (f.name for f in fields(config.training))
    defaults = {name: getattr(preset, name) for name in names if hasattr(preset, name)}
    out = Path("runs") / "_".join((kind, preset.name, str(config.steps), *more))
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
    model = given(path, preset)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Trained(model, name, None, None), sha256


def run_student(
    kind: str,
    config: Config,
    make_teacher: Callable[[mc.Denoiser], mc.AbstractTeacher],
    *,
    named: tuple[str, ...] = (),
    guidance: mc.Guidance | None = None,
    guidance_range: tuple[float, float] | None = None,
) -> Path:
    """Teacher, student, table and picture; every finished stage is kept.

    `named` ends the name of the folder if none is given. `guidance` is the teacher's,
    in the table too. With a `guidance_range` the student
    takes the scale as an input, and is measured at that of `guidance`.
    """
    segments = mc.Segments(config.steps)
    preset, images = load(config.data_dir)
    plan = _filled(config, preset, kind, *named)
    options, evaluation = plan.training, plan.evaluation
    diffusion = mc.DiffusionLoss(label_dropout=options.label_dropout)
    preset = with_label_dropout(preset, options.label_dropout)
    check_training(
        options.batch_size,
        plan.seed,
        learning_rate=options.learning_rate,
        ema_decay=preset.ema_decay,
        iterations=options.iterations,
        teacher_iterations=options.teacher_iterations,
    )
    if guidance is not None and not options.label_dropout:
        raise ValueError(
            f"guidance {guidance.scale} needs a teacher with a null class: give "
            "--training.label-dropout 0.1 and a teacher that was trained with it"
        )
    measured = {"samples": evaluation.samples, "seed": evaluation.seed}
    network = feature_network(images, **measured)
    teacher, sha256 = _given_teacher(plan.teacher, preset)
    if teacher is not None and config.training.teacher_iterations is not None:
        raise ValueError(
            f"--training.teacher-iterations {options.teacher_iterations} is for a "
            f"teacher that is trained here, --teacher scratch; {plan.teacher} is given"
        )
    scale: Any = None if guidance is None else guidance.scale
    asked = None if guidance_range is None else scale
    later = ("evaluation",) if asked is None else ("evaluation", "guidance")
    run = claim(plan.out, kind, plan, *later, teacher_sha256=sha256)

    network_key, teacher_key, student_key = jax.random.split(
        jax.random.key(plan.seed), 3
    )
    shared = {"batch_size": options.batch_size, "ema_decay": preset.ema_decay}
    if teacher is None:
        teacher = train(
            "teacher",
            run,
            diffusion,
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
        guidance_range,
    )
    takes_scale = guidance_range is not None
    student = train(
        "student",
        run,
        loss,
        mc.with_guidance_input(teacher.model) if takes_scale else teacher.model,
        images,
        iterations=options.iterations,
        learning_rate=options.learning_rate,
        seed=plan.seed + 1,
        key=student_key,
        **shared,
    )
    rows = [
        *teacher_rows(teacher, plan.steps, guidance),
        Row(f"student ({kind}), DDIM", student, mc.DDIM(), segments.grid(), asked),
    ]
    measured |= {"training_seed": plan.seed, "guidance": scale}
    return compare(rows, run, images, network, **measured)
