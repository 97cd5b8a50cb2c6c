"""A line of a comparison: a model, how it is sampled, and its samples on disk."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _runs import file_name, whole
from _training import Trained

import mcmeqx as mc


@dataclass(frozen=True)
class Row:
    """One line of the table: a model and how it is sampled."""

    method: str
    trained: Trained
    sampler: mc.AbstractSampler
    grid: np.ndarray
    guidance: float | None = None
    """The scale, for a model that takes it as an input."""

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        return len(self.grid) - 1

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample; a guided model needs two a step."""
        return self.steps * (2 if isinstance(self.trained.model, mc.Guided) else 1)

    def record(self) -> dict[str, Any]:
        """What the table says of it; a model that was given has no training costs."""
        _, weights, iterations, seconds = self.trained
        return {
            "method": self.method,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "weights": weights,
            "iterations": "" if iterations is None else iterations,
            "training_seconds": "" if seconds is None else f"{seconds:.1f}",
        }


def teacher_rows(
    teacher: Trained, steps: int, guidance: mc.Guidance | None
) -> list[Row]:
    """The teacher at 256 and at `steps` steps, with DDIM and with aDDIM."""
    if guidance is not None:
        teacher = teacher._replace(model=mc.Guided(teacher.model, guidance))
    samplers = (("DDIM", mc.DDIM()), ("aDDIM", mc.ADDIM()))
    return [
        Row(f"teacher, {name}", teacher, sampler, mc.uniform_grid(n))
        for n in dict.fromkeys((256, steps))
        for name, sampler in samplers
    ]


def sampled(row: Row, folder: Path, noise, labels, key) -> tuple[np.ndarray, float]:
    """The row's samples, from `folder` if they are there, and the seconds they took."""
    path = folder / "samples" / f"{file_name(row.method)}_{row.steps}.npz"
    if not path.exists():
        begun = time.perf_counter()
        x = mc.generate(
            row.trained.model,
            row.sampler,
            row.grid,
            noise,
            labels,
            guidance=row.guidance,
            key=key,
            batch_size=32,
            describe=f"{row.method}, {row.steps} steps",
        )
        with whole(path) as part:
            np.savez(part, x=x, seconds=time.perf_counter() - begun)
    with np.load(path) as stored:
        return stored["x"], float(stored["seconds"])
