"""One noise through the teacher and its students: the table, to be looked at."""

from pathlib import Path

import numpy as np
from _pictures import draw, from_one_noise
from _table_cells import MANY, cells
from _table_data import ImageSet
from _table_models import is_trained, student_of

import mcmeqx as mc


def sheet(
    images: ImageSet, teacher: mc.Denoiser, work: Path, seed: int, path: Path
) -> None:
    """A column for each class, a row for each model that distillation has trained."""
    models = {
        f"teacher, {MANY[0]} steps": (teacher, MANY[0]),
        "teacher, 8 steps": (teacher, 8),
    }
    for cell in reversed(list(cells())):
        student = cell.student
        if cell.method == "CD" and student and is_trained(student, work):
            model = student_of(student, teacher, images, work, seed)
            models[f"student, {cell.steps}"] = (model, cell.steps)
    labels = np.arange(len(images.images.classes), dtype=np.int32)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((len(labels), *images.images.shape), np.float32)
    rows = from_one_noise(models, noise, labels)
    draw(rows, path, f"{images.images.name}: one noise and class down each column")
