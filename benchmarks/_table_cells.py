"""The cells of the table: a model, how it was taught, and how it is sampled."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from _solvers import Kind, TeacherSolver
from _table_data import ImageSet

import mcmeqx as mc

EVALUATIONS = (1, 2, 4, 8, 16)
MANY = (256, 512)
CONSTANT = (32.0, 64.0, 256.0)
STEPS: dict[str, Kind] = {"aDDIM": "addim", "DDIM": "ddim", "midpoint": "midpoint"}
"""A teacher's steps: the two of the paper's table 4, and the midpoint rule."""

MakeTeacher = Callable[[mc.Denoiser], mc.AbstractTeacher]
MakeSampler = Callable[[mc.Denoiser, ImageSet], mc.AbstractSampler]


@dataclass(frozen=True)
class Student:
    """How a student is taught; its name is that of its folder."""

    name: str
    segments: int
    teacher: MakeTeacher
    constant: float | None = None
    """Teacher steps that do not anneal."""
    order: int = 1
    """Of consistency training's targets."""

    @property
    def from_data(self) -> bool:
        """Whether it is consistency training."""
        return self.teacher is _data


@dataclass(frozen=True)
class Cell:
    """One entry of the table: a method at a number of evaluations a sample."""

    method: str
    evaluations: int
    sampler: MakeSampler
    steps: int
    student: Student | None = None

    @property
    def name(self) -> str:
        """What `--only` looks in."""
        return f"{self.method} {self.evaluations}"


def _table(model: mc.Denoiser, images: ImageSet) -> mc.MeasuredVariance:
    """x_var measured on 256 images at 33 times."""
    batch = images.images.take(
        np.random.default_rng(0).permutation(len(images.images))[:256]
    )
    ts = np.linspace(0.0, 1.0, 33)
    return mc.measure_x_var(model, batch, ts, key=jax.random.key(0))


BASELINES: tuple[tuple[str, MakeSampler], ...] = (
    ("DDIM", lambda model, images: mc.DDIM()),
    ("aDDIM, analytic x_var", lambda model, images: mc.ADDIM()),
    ("aDDIM, measured x_var", lambda m, images: mc.ADDIM(_table(m, images))),
    (
        "aDDIM, norm-balanced",
        lambda model, images: mc.ADDIM(_table(model, images), balanced=True),
    ),
    ("aDDIM, last step as printed", lambda m, images: mc.ADDIM(literal=True)),
    ("DPM-Solver++(2M)", lambda model, images: mc.DPMSolver()),
)
HEUN = {3: 2, 7: 4, 15: 8}
"""Steps of Heun by evaluations: the most that 4, 8 and 16 evaluations allow."""


def _data(teacher: mc.Denoiser) -> mc.DataTeacher:
    return mc.DataTeacher()


def _students(usual: Kind) -> Iterator[tuple[str, Student]]:
    """Method and student of every student in the table."""
    taught = TeacherSolver(usual).build
    for s in EVALUATIONS:
        yield "CD", Student(f"cd_{s}", s, taught)
    for s in EVALUATIONS:
        yield "CT", Student(f"ct_{s}", s, _data)
    for name, kind in STEPS.items():
        if kind != usual:
            other = TeacherSolver(kind).build
            for s in EVALUATIONS:
                yield f"CD, {name} teacher", Student(f"cd_{kind}_{s}", s, other)
    for n in CONSTANT:
        for s in EVALUATIONS[:-1]:
            name = f"cd_constant_{n:g}_{s}"
            yield f"CD, T = {n:g}", Student(name, s, taught, n)
    for s in EVALUATIONS:
        yield "CT, second order", Student(f"ct_second_{s}", s, _data, order=2)


def cells(usual: Kind) -> Iterator[Cell]:
    """All cells, the main rows first; `usual` is how the teacher of CD steps."""
    ddim: MakeSampler = BASELINES[0][1]
    for n in MANY:
        for method, sampler in BASELINES[:2]:
            yield Cell(method, n, sampler, n)
    for method, student in _students(usual):
        yield Cell(method, student.segments, ddim, student.segments, student)
        if student.name == f"ct_{EVALUATIONS[-1]}":
            yield from _baselines()


def _baselines() -> Iterator[Cell]:
    for method, sampler in BASELINES:
        for n in EVALUATIONS:
            yield Cell(method, n, sampler, n)
    for n, steps in HEUN.items():
        yield Cell("Heun", n, lambda model, images: mc.Heun(), steps)
