"""Options and stages that distillation and consistency training have in common."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from _compare import Row, compare, teacher_rows
from _runs import claim
from _stages import load, new_denoiser, train

import mcmeqx as mc

WEIGHTINGS = {
    "snr_plus_one": mc.snr_plus_one,
    "sqrt_snr_plus_one": mc.sqrt_snr_plus_one,
}


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
    """How results are measured."""

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
    teacher: str = "scratch"
    """`scratch` trains a teacher in the run folder; or a `teacher.eqx` file."""
    out: Path | None = None
    """Run folder; None is runs/<recipe>_<data>_<steps>. The same command resumes it."""
    seed: int = 0
    """Seed of weights, data order and training noise."""
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)


def run_student(
    kind: str, config: Config, make_teacher: Callable[[mc.Denoiser], mc.AbstractTeacher]
) -> Path:
    """Teacher, student, table and picture; every finished stage is kept."""
    segments = mc.Segments(config.steps)
    preset, images = load(config.data_dir)
    options = config.training
    iterations = options.iterations or preset.iterations
    teacher_iterations = options.teacher_iterations or preset.teacher_iterations
    batch_size = options.batch_size or preset.batch_size
    fresh = new_denoiser(preset, config.seed)
    given = config.teacher != "scratch"
    teacher = mc.load_model(Path(config.teacher), fresh) if given else None
    out = config.out or Path("runs") / f"{kind}_{preset.name}_{config.steps}"
    run = claim(out, config)
    if teacher is None:
        teacher = train(
            "teacher",
            run,
            mc.DiffusionLoss(),
            fresh,
            images,
            iterations=teacher_iterations,
            batch_size=batch_size,
            learning_rate=preset.teacher_learning_rate,
            ema_decay=preset.ema_decay,
            seed=config.seed,
        )
    start, stop, over = preset.anneal
    loss = mc.MultistepConsistencyLoss(
        make_teacher(teacher),
        segments,
        mc.annealed_steps(start, stop, min(over, iterations)),
        WEIGHTINGS[options.weighting],
        options.distance,
    )
    student = train(
        "student",
        run,
        loss,
        teacher,
        images,
        iterations=iterations,
        batch_size=batch_size,
        learning_rate=options.learning_rate or preset.learning_rate,
        ema_decay=preset.ema_decay,
        seed=config.seed + 1,
    )
    rows = [
        Row(f"student ({kind}), DDIM", student, mc.DDIM(), config.steps, iterations),
        *teacher_rows(teacher, config.steps, "given" if given else teacher_iterations),
    ]
    samples = config.evaluation.samples or preset.samples
    return compare(rows, run, images, samples=samples, seed=config.evaluation.seed)
