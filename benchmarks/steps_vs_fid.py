"""Steps against quality: the paper's table 1, on data that can be had.

    python benchmarks/steps_vs_fid.py --data fashion_mnist
    python benchmarks/steps_vs_fid.py --data emoji64 --folder tarballs --only "CD 8"

Students of 1 to 16 steps by distillation (CD) and consistency training (CT), against
their teacher's samplers at as many evaluations. Cells that the table holds are skipped;
a run that was cut goes on. Also table 2 (constant teacher steps) and table 4 (a DDIM
teacher) of Heek et al. 2024.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import _table_data
from _machine import Hosts, Mesh, start
from _table_cells import Cell, cells
from _table_data import ImageSet
from _table_models import student_of, teacher_of
from _table_plot import plot
from _table_score import floor, reference, score

import mcmeqx as mc

COLUMNS: tuple[str, ...] = (
    "data",
    "method",
    "evaluations",
    "distance",
    "seed",
    "samples",
    "feature_network",
    "reference",
    "training_iterations",
    "batch_size",
    "training_seed",
    "sampling_seconds",
)
KEY = ("data", "method", "evaluations", "seed", "samples", "training_iterations")


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
    """Seed of training."""
    work: Path = Path("runs/table")
    """Models and features; a folder for each set of images."""
    out: Path = Path("benchmarks")
    """Folder of steps_vs_fid_<data>.csv and .png."""


def main(config: Config) -> Path:
    """Measure what is not in the table yet; return the table's path."""
    start(Mesh(), Hosts())
    images: ImageSet = getattr(_table_data, config.data)(config.folder)
    wanted = [c for c in cells() if not config.only or c.name in config.only]
    unknown = set(config.only) - {cell.name for cell in wanted}
    if unknown:
        names = ", ".join(cell.name for cell in cells())
        raise ValueError(f"there is no cell {sorted(unknown)}; there are {names}")
    work = config.work / config.data
    table = config.out / f"steps_vs_fid_{config.data}.csv"
    network = mc.metrics.EfficientNetLite0.load()
    data = reference(images.images, network, work / "reference.npz")
    about = {
        "data": images.images.name,
        "samples": config.samples,
        "feature_network": network.name,
        "reference": data.count,
        "batch_size": images.preset.batch_size,
        "training_seed": config.seed,
    }
    done = {_key(row) for row in _rows(table)}
    for seed in range(config.seeds):
        row = about | {"method": "data", "evaluations": 0, "seed": seed}
        if _key(row) not in done:
            distance = floor(images.images, network, config.samples, seed)
            _append(table, row | {"distance": f"{distance:.3f}"})
    teacher = teacher_of(images, work, config.seed)
    for cell in wanted:
        iterations = images.preset.iterations if cell.student else ""
        row = about | {
            "method": cell.method,
            "evaluations": cell.evaluations,
            "training_iterations": iterations,
        }
        seeds = [s for s in range(config.seeds) if _key(row | {"seed": s}) not in done]
        if seeds:
            print(f"\n{cell.name}: seeds {seeds}", flush=True)
            model = _model(cell, teacher, images, work, config.seed)
            sampler = cell.sampler(model, images)
            for seed in seeds:
                folder = (
                    work / "features" / _slug(cell.name) / f"{config.samples}_{seed}"
                )
                result = score(
                    model,
                    sampler,
                    cell.steps,
                    images.images,
                    network,
                    data,
                    samples=config.samples,
                    seed=seed,
                    folder=folder,
                    describe=cell.name,
                )
                _append(table, row | {"seed": seed} | result)
    plot(_rows(table), table.with_suffix(".png"))
    return table


def _model(cell: Cell, teacher, images: ImageSet, work: Path, seed: int) -> mc.Denoiser:
    if cell.student is None:
        return teacher
    return student_of(cell.student, teacher, images, work, seed)


def _slug(name: str) -> str:
    from _runs import file_name

    return file_name(name)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in KEY)


def _rows(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(table: Path, row: dict[str, Any]) -> None:
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(f"{row['method']:28}{row['evaluations']:5} {row['distance']:>10}", flush=True)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
