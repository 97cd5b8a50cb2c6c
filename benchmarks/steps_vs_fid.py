"""Steps against quality: the paper's table 1, on data that can be had.

    python benchmarks/steps_vs_fid.py --data fashion_mnist
    python benchmarks/steps_vs_fid.py --data emoji64 --folder tarballs --only "CD 8"

Students of 1 to 16 steps by distillation (CD) and consistency training (CT), against
their teacher's samplers at as many evaluations. Cells that the table holds are skipped;
a run that was cut goes on. Also table 2 (constant teacher steps) and table 4 (aDDIM or
DDIM as the teacher's step, and here the midpoint rule; elsewhere it is that of the
image set's preset) of Heek et al. 2024.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import _table_data
from _evaluation import drawn_labels, evaluate
from _machine import Hosts, Mesh, start
from _measured_data import from_images
from _recipes import at_least
from _results import add_row
from _scores import METRICS
from _table_cells import Cell, cells
from _table_data import PRESETS, ImageSet, Taught
from _table_models import student_of, teacher_of
from _table_plot import EARLY, plot
from _table_sheet import sheet
from _table_text import text
from _tables import read_rows

import mcmeqx as mc

COLUMNS: tuple[str, ...] = (
    "data",
    "method",
    "evaluations",
    "seed",
    "samples",
    *METRICS,
    *EARLY,
    "network",
    "resize",
    "reference_samples",
    "reference_sha256",
    "iterations",
    "batch_size",
    "training_seed",
    "plan",
    "id",
)
KEY = (
    "method",
    "evaluations",
    "samples",
    "reference_sha256",
    "training_seed",
    "plan",
)
"""What a row is of: whoever asks for the same has no need to measure it again."""


@dataclass(frozen=True)
class Config:
    """Which cells, of which data, from how many samples."""

    data: Literal["fashion_mnist", "emoji64"] = "fashion_mnist"
    """The image set; emoji64 needs --folder."""
    folder: Path | None = None
    """Where the set lies; None is where Debian's package puts Fashion-MNIST."""
    only: tuple[str, ...] = ()
    """Measure the cells whose `method evaluations` are named; none means all."""
    samples: int = 5000
    """Samples a cell and seed."""
    seeds: int = 3
    """Sampling seeds: 0 and up."""
    seed: int = 0
    """Seed of the students' training, and of a teacher's that lies in no file."""
    work: Path = Path("runs/table")
    """Models and features; a folder for each set of images."""
    out: Path = Path("benchmarks")
    """Folder of steps_vs_fid_<data>.csv, its plot .png and the sheet _samples.png."""


def main(config: Config) -> Path:
    """Measure what is not in the table yet; return the table's path."""
    at_least(1, seeds=config.seeds)
    at_least(2, samples=config.samples)
    at_least(0, seed=config.seed)
    every = list(cells(PRESETS[config.data].teacher_step))
    wanted = [c for c in every if not config.only or c.name in config.only]
    unknown = set(config.only) - {cell.name for cell in wanted}
    if unknown:
        names = ", ".join(cell.name for cell in every)
        raise ValueError(f"there is no cell {sorted(unknown)}; there are {names}")
    table = config.out / f"steps_vs_fid_{config.data}.csv"
    # Before features, and perhaps a teacher, take hours.
    read_rows(table, COLUMNS)
    images: ImageSet = getattr(_table_data, config.data)(config.folder)
    start(Mesh(), Hosts(), batch_size=images.preset.batch_size)
    work = config.work / config.data
    models = work / f"seed_{config.seed}"
    load = mc.metrics.EfficientNetLite0.load
    against = [from_images(images.images, load(n), work) for n in (None, 3)]
    reference = against[0].reference.sha256
    teacher = teacher_of(images, models, config.seed)
    for cell in wanted:
        about = _about(cell, images, reference, config)
        rows = read_rows(table, COLUMNS)
        done = {int(row["seed"]) for row in rows if _key(row) == _key(about)}
        seeds = [s for s in range(config.seeds) if s not in done]
        if not seeds:
            continue
        print(f"\n{cell.name}: seeds {seeds}", flush=True)
        model = teacher
        if cell.student is not None:
            model = student_of(cell.student, teacher, images, models, config.seed)
        sampler = cell.sampler(model, images)
        for seed in seeds:
            labels = drawn_labels(images.images.labels, config.samples, seed)
            result, early = evaluate(
                model,
                sampler,
                mc.uniform_grid(cell.steps),
                shape=images.images.shape,
                labels=labels,
                samples=config.samples,
                seed=seed,
                against=against,
                folder=work / "samples",
            )
            distances = early["frechet"], early.get("floor", "")
            row = result | about | dict(zip(EARLY, distances, strict=True))
            add_row(table, row | {"seed": seed}, COLUMNS, (*KEY, "seed"))
            numbers = f"{result['frechet']:10.1f}{early['frechet']:10.3f}"
            print(f"{cell.name:32}{numbers}", flush=True)
    ours = {_key(_about(cell, images, reference, config)) for cell in every}
    every_row = read_rows(table, COLUMNS)
    rows = [row for row in every_row if _key(row) in ours]
    methods = list(dict.fromkeys(cell.method for cell in every))
    rows.sort(key=lambda row: methods.index(row["method"]))
    print(f"\n{text(rows)}\n\nBlock 3, 24 features:\n\n{text(rows, EARLY[0])}")
    picture = table.with_suffix(".png")
    if picture.exists() and any(_is_of_others(r, images, config) for r in every_row):
        print(
            f"\n{picture} stays: {table} has rows of other samples or seeds too; "
            "remove it to draw these, or give another --out"
        )
        return table
    plot(rows, picture)
    samples = table.with_name(f"{table.stem}_samples.png")
    sheet(images, teacher, rows, models, config.seed, samples)
    print(f"\n{table}, {picture.name}, {samples.name}")
    return table


def _about(
    cell: Cell, images: ImageSet, reference: str, config: Config
) -> dict[str, Any]:
    """What a row says of its cell; a teacher of the package has its own history."""
    preset, student = images.preset, cell.student
    iterations = preset.iterations if student else preset.teacher_iterations
    known = student or preset.teacher != "embedded"
    taught: Taught = "teacher"
    if student is not None:
        taught = "ct" if student.from_data else "cd"
    return {
        "data": images.images.name,
        "method": cell.method,
        "evaluations": cell.evaluations,
        "samples": config.samples,
        "iterations": iterations if known else "",
        "batch_size": preset.batch_size if known else "",
        "reference_sha256": reference,
        "training_seed": _training_seed(cell.method, images, config),
        "plan": images.plan(taught),
    }


def _training_seed(method: str, images: ImageSet, config: Config) -> int:
    """A teacher that lies in a file does not depend on `config.seed`, and says 0."""
    student = method.startswith(("CD", "CT"))
    return config.seed if student or not images.teacher.exists() else 0


def _is_of_others(row: dict[str, Any], images: ImageSet, config: Config) -> bool:
    """Whether a row is of a table of its own, with pictures of its own."""
    seed = _training_seed(row["method"], images, config)
    ours = str(config.samples), str(seed)
    return (row["samples"], row["training_seed"]) != ours


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
