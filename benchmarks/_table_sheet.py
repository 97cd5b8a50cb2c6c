"""One noise through the teacher and its students: the table, to be looked at."""

from pathlib import Path

import numpy as np
from _pictures import draw, from_one_noise
from _table_cells import MANY, cells
from _table_data import ImageSet
from _table_models import is_trained, student_of

import mcmeqx as mc


def sheet(
    images: ImageSet,
    teacher: mc.Denoiser,
    rows: list[dict[str, str]],
    work: Path,
    seed: int,
    path: Path,
) -> None:
    """A column for each class, a row for each model by distillation in `rows`.

    A sheet that is there stays if one of those students lies elsewhere.
    """
    named = {f"CD {row['evaluations']}" for row in rows if row["method"] == "CD"}
    every = cells(images.preset.teacher_step)
    students = [c.student for c in every if c.student and c.name in named]
    trained = [student for student in students if is_trained(student, work)]
    missing = named - {f"CD {student.segments}" for student in trained}
    if path.exists() and (missing or not trained):
        absent = f"{', '.join(sorted(missing))} lie in another --work"
        print(f"{path} stays: {absent if missing else 'there is no student to draw'}")
        return
    models = {
        f"teacher, {MANY[0]} steps": (teacher, MANY[0]),
        "teacher, 8 steps": (teacher, 8),
    }
    for student in reversed(trained):
        model = student_of(student, teacher, images, work, seed)
        models[f"student, {student.segments}"] = (model, student.segments)
    labels = np.arange(len(images.images.classes), dtype=np.int32)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((len(labels), *images.images.shape), np.float32)
    drawn = from_one_noise(models, noise, labels)
    draw(drawn, path, f"{images.images.name}: one noise and class down each column")
