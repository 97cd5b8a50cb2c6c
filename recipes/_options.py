"""Options that distillation and consistency training have in common."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from _machine import Hosts, Memory, Mesh
from _runs import fill
from _stages import Preset

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
    """Steps of student training; None is 300 in the demo and 200,000 on ImageNet."""
    batch_size: int | None = None
    """Images per step; None is 16 in the demo and 2048 on ImageNet."""
    learning_rate: float | None = None
    """Peak of Adam's learning rate for the student; None is 3e-4 in the demo and 1e-4
    on ImageNet."""
    precision: Literal["float32", "bfloat16"] | None = None
    """What the network computes in; parameters, times, targets and loss are float32.
    None is float32 in the demo and bfloat16 on ImageNet."""
    ema_decay: float | None = None
    """Decay of the weight average; None is 0.99 in the demo and 0.9999 on ImageNet."""
    anneal: tuple[float, float, int] | None = None
    """First and last number of teacher steps, and the iterations over which they grow
    from one to the other, all of them at most; None is 8 16 240 in the demo (from
    data 16 32 240) and 64 1280 100000 on ImageNet."""
    weighting: Literal["snr_plus_one", "sqrt_snr_plus_one"] | None = None
    """Loss weight; the paper's, or its square root, which is calmer and gets nearer to
    the teacher in a short training (benchmarks/findings.md). None is the paper's."""
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
    """ImageNet 64x64, a folder, zip or packed file; without it
    the run is a demo on emoji."""
    emoji64_dir: Path | None = None
    """Folder of the npm tarballs @iconify-json/{noto,twemoji,fluent-emoji,
    fluent-emoji-flat,emojione}: the demo on these five vendors' emoji."""
    teacher: str | None = None
    """`embedded` is the package's emoji teacher, the demo's default; `scratch`, the
    default on ImageNet, trains one in the run folder; or the path of a teacher.eqx."""
    start_from: str | None = None
    """What the student starts from: its `teacher`; `embedded`, the package's 8-step
    emoji student, the default of the demo's distillation from the embedded teacher; or
    the path of a student.eqx."""
    out: Path | None = None
    """Run folder; None is runs/<recipe>_<data>_<steps>, and more for a teacher's solver
    and guidance, or another order. The same command resumes it."""
    seed: int = 0
    """Seed of weights, data order and training noise."""
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    mesh: Mesh = field(default_factory=Mesh)
    hosts: Hosts = field(default_factory=Hosts)
    memory: Memory = field(default_factory=Memory)
    replay: Path | None = None
    """Look into the capsule of a run that stopped, with the command that made it."""


def filled(config: Config, preset: Preset, kind: str, *more: str) -> Any:
    """The options with what suits the data where they are None."""
    preset = preset.training(from_data=kind == "ct")
    names = (f.name for f in fields(config.training))
    defaults = {name: getattr(preset, name) for name in names if hasattr(preset, name)}
    out = Path("runs") / "_".join((kind, preset.name, str(config.steps), *more))
    teacher = config.teacher or preset.teacher
    embedded = kind == "cd" and teacher == "embedded"
    start_from = "embedded" if embedded else "teacher"
    return replace(
        fill(config, teacher=teacher, start_from=start_from, out=out),
        training=fill(config.training, **defaults),
        evaluation=fill(config.evaluation, samples=preset.samples),
    )
