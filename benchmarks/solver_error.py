"""Error and image quality of the teacher's samplers against network evaluations.

    python benchmarks/solver_error.py --problem mixture
    python benchmarks/solver_error.py --problem teacher --samples 48

`rms_error` is the root mean square distance, per element, of a sample to the end of
the model's own flow from the same noise. `mixture`: 16 Gaussians in 192 dimensions with
their exact denoiser, in float32; the flow is solved by Dopri8 in float64 to 1e-10.
Runge-Kutta methods take equal steps of the angle, or, to compare, of other variables.
`teacher`: the package's emoji teacher, its flow solved by Tsit5 to 1e-5, and Frechet
distances of the samples to OpenMoji and to the ends of the flow, on EfficientNet-Lite0
features. Writes `<out>/solver_error_<problem>.csv` and a plot beside it. A finished row
is kept: the same command goes on where it stopped.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import tyro
from _methods import runs
from _problems import Problem, mixture, teacher
from _results import add_row
from _runs import at_least, whole
from _tables import read_rows
from matplotlib.figure import Figure

import mcmeqx as mc

PROBLEMS: dict[str, Callable[[int, int], Problem]] = {
    "mixture": mixture,
    "teacher": teacher,
}
COLUMNS: tuple[str, ...] = (
    "method",
    "evaluations",
    "rms_error",
    "distance_to_data",
    "distance_to_flow",
    "samples",
    "seed",
    "teacher_sha256",
    "seconds",
)


@dataclass(frozen=True)
class Config:
    """What to measure."""

    problem: Literal["mixture", "teacher"] = "mixture"
    """Error to the exact flow on a mixture, or image quality of the emoji teacher."""
    samples: int = 96
    """Samples of each row."""
    seed: int = 0
    """Seed of noise and classes."""
    out: Path = Path("benchmarks")
    """Folder of the table and the plot."""


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """One line a method, both axes logarithmic; the reference itself has no place."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=matplotlib.colormaps["tab20"](range(20)))
    lines: dict[str, list[tuple[float, float]]] = {}
    value = "distance_to_flow" if rows[0]["distance_to_flow"] else "rms_error"
    for row in rows:
        name = row["method"].split(" adaptive")[0].rstrip(",")
        name += ", adaptive" if "adaptive" in row["method"] else ""
        point = (float(row["evaluations"]), float(row[value]))
        if point[1] > 0:
            lines.setdefault(name, []).append(point)
    for name, points in lines.items():
        axes.loglog(*np.array(sorted(points)).T, marker="o", ms=3, label=name)
    axes.set_xlabel("network evaluations a sample")
    axes.set_ylabel(f"{value.replace('_', ' ')} (of the samples to the exact flow's)")
    axes.legend(fontsize=8)
    with whole(path) as part:
        figure.savefig(part, dpi=120)


def main(config: Config) -> Path:
    """Measure what the table lacks, write table and plot, and return the table."""
    at_least(2, samples=config.samples)
    at_least(0, seed=config.seed)
    table = config.out / f"solver_error_{config.problem}.csv"
    done = read_rows(table, COLUMNS)
    ours = {"samples": str(config.samples), "seed": str(config.seed)}
    file = mc.EMOJI_TEACHER if config.problem == "teacher" else None
    ours["teacher_sha256"] = (
        "" if file is None else sha256(file.read_bytes()).hexdigest()
    )
    for row in done:
        for name, value in ours.items():
            if row[name] != value:
                raise ValueError(
                    f"{table} has rows of {name}={row[name]}, and {name}={value} is "
                    "asked for; give another --out"
                )
    problem = PROBLEMS[config.problem](config.samples, config.seed)
    known = {(row["method"], row["evaluations"]) for row in done}
    known |= {(row["method"], "0") for row in done if "adaptive" in row["method"]}
    for method, count, run in runs(problem):
        if (method, str(count)) in known:
            continue
        begun = time.perf_counter()
        evaluations, x = run()
        seconds = time.perf_counter() - begun
        error = np.sqrt(np.mean((x - problem.exact) ** 2))
        both = () if problem.distances is None else problem.distances(x)
        numbers = [f"{v:.6g}" for v in (error, *both)] + [""] * (2 - len(both))
        values = (
            method,
            f"{evaluations:g}",
            *numbers,
            *ours.values(),
            f"{seconds:.2f}",
        )
        row = dict(zip(COLUMNS, values, strict=True))
        print(
            f"{method:28} {evaluations:7.1f} evaluations {row['rms_error']}", flush=True
        )
        add_row(table, row, COLUMNS, ("method", "evaluations"))
    plot(read_rows(table, COLUMNS), table.with_suffix(".png"))
    return table


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
