"""Multistep consistency distillation (CD): teach, distil, sample and compare.

    python recipes/cd_imagenet64.py --steps 8
    python recipes/cd_imagenet64.py --steps 8 --teacher-solver.kind heun

Without --data-dir this is a demo on 64x64 OpenMoji emoji with a small UViT. It distils
the package's diffusion teacher into a student of --steps network evaluations (Heek et
al. 2024, Alg. 1), and writes a picture and a table that compare the two.

Two CPU cores take four to eight minutes. Frechet distances on 24 features of
EfficientNet-Lite0 to OpenMoji, 96 samples, one seed: the teacher's 256 DDIM steps 136,
its 8 steps 176 (DDIM) and 177 (aDDIM), the student's 135; data against data 7
(benchmarks/README.md).
"""

import math
import sys
from dataclasses import dataclass, field, replace

from _options import Config as StudentConfig
from _runs import fill
from _solvers import TeacherSolver
from _stages import preset_of
from _student import run_student

import mcmeqx as mc


@dataclass(frozen=True)
class Config(StudentConfig):
    """Options of a distillation run."""

    teacher_solver: TeacherSolver = field(default_factory=TeacherSolver)
    guidance: float = 0.0
    """g of the teacher's classifier-free guidance, (1 + g) x_class - g x_no_class; the
    student needs one evaluation a step all the same. Other papers' w - 1."""
    guidance_interval: tuple[float, float] | None = None
    """Lowest and highest logsnr at which the teacher is guided; None guides it at all
    noise levels."""
    guidance_range: tuple[float, float] | None = None
    """Train a student that takes the scale as an input, on scales in this range;
    --guidance is the one it is measured at, and can be another on the next call."""

    def __post_init__(self) -> None:
        """ValueError for scales that no teacher or student could have."""
        low, high = self.guidance_range or (0.0, sys.float_info.max)
        mc.check_guidance_range((low, high))
        if not low <= self.guidance <= high:
            raise ValueError(
                f"guidance is a scale in [{low:g}, {high:g}], got {self.guidance}"
            )
        if self.guidance_interval is not None and not self.guided:
            raise ValueError(
                f"guidance_interval {self.guidance_interval} needs a --guidance above 0"
            )

    @property
    def guided(self) -> bool:
        """Whether there is guidance at all."""
        return self.guidance > 0 or self.guidance_range is not None


def main(config: Config):
    """Run, resume or finish the job; return the path of the table."""
    guidance, named = None, ()
    usual = preset_of(config.data_dir).teacher_step
    solver = fill(config.teacher_solver, kind=usual)
    config = replace(config, teacher_solver=solver)
    if solver.kind != usual:
        named += (solver.kind,)
    if config.guided:
        everywhere = (-math.inf, math.inf)
        interval = config.guidance_interval or everywhere
        guidance = mc.Guidance(config.guidance, interval)
        scales = config.guidance_range or (config.guidance,)
        named += ("guidance", *(f"{g:g}" for g in scales))
    return run_student(
        "cd",
        config,
        lambda teacher: solver.build(teacher, guidance),
        named=named,
        guidance=guidance,
        guidance_range=config.guidance_range,
    )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
