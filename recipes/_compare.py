"""Teacher against student from the same noise: a table of distances and a picture.

Every row samples from one noise and one list of classes. Its samples are kept, so an
interrupted comparison goes on at the row it had reached. The distance is a Frechet
distance on EfficientNet-Lite0's features: not comparable with published FID, which is
on another network's.
"""

import csv
import time
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import jax
import numpy as np
from _runs import at_least, file_name, whole
from _stages import Trained
from matplotlib.figure import Figure

import mcmeqx as mc

COLUMNS = (
    "method",
    "steps",
    "evaluations",
    "guidance",
    "frechet_distance",
    "data",
    "feature_network",
    "samples",
    "reference",
    "seed",
    "training_seed",
    "iterations",
    "training_seconds",
    "sampling_seconds",
)
PICTURED = 12
_CHUNK = 4096


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

    @property
    def cost(self) -> tuple[str, str]:
        """Training steps and seconds; a model that was given has no seconds."""
        seconds = self.trained.seconds
        return str(self.trained.iterations), "" if seconds is None else f"{seconds:.1f}"


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


def feature_network(
    images: mc.data.Images, *, samples: int, seed: int
) -> mc.metrics.EfficientNetLite0:
    """What `compare` needs; an error, before hours are spent, if it could not work."""
    at_least(2, samples=samples)
    at_least(0, seed=seed)
    if len(images) < 2 * samples:
        raise ValueError(
            f"{samples} samples need {2 * samples} images for the floor and the "
            f"reference, {images.name} has {len(images)}: ask for {len(images) // 2} "
            "samples or fewer"
        )
    return mc.metrics.EfficientNetLite0.load()


def _sampled(row: Row, folder: Path, noise, labels, key) -> tuple[np.ndarray, float]:
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


def compare(
    rows: list[Row],
    run: Path,
    images: mc.data.Images,
    network: mc.metrics.EfficientNetLite0,
    *,
    training_seed: int,
    guidance: float | None,
    samples: int,
    seed: int,
) -> Path:
    """Write and print a table and a picture in a folder of `run`; the table's path.

    `guidance` is the scale that all rows were guided with, if any, for the record.
    """
    guided = "" if guidance is None else f", guidance {guidance:g}"
    folder = run / file_name(f"evaluation_{samples}_samples_seed_{seed}{guided}")
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(images))
    noise = rng.standard_normal((samples, *images.shape), np.float32)
    sampler_key = jax.random.key(int(rng.integers(2**31)))
    held = images.take(order[:samples])
    reference = data_moments(network, images, order[samples:])
    results, pictures = [], {}

    def add(row: Row | None, x: np.ndarray, seconds: float) -> None:
        method = "data against data (floor)" if row is None else row.method
        steps, evaluations = (0, 0) if row is None else (row.steps, row.evaluations)
        cost = ("", "") if row is None else row.cost
        scale = "" if row is None or guidance is None else guidance
        moments = mc.metrics.Moments.of(mc.metrics.features(network, np.clip(x, -1, 1)))
        distance = mc.metrics.frechet_distance(moments, reference)
        measured = (images.name, network.name, samples, len(images) - samples, seed)
        cost = (training_seed, *cost, f"{seconds:.1f}")
        sampling = (method, steps, evaluations, scale)
        results.append((*sampling, f"{distance:.2f}", *measured, *cost))
        print(f"{method:32} {steps:5d} steps   FD-EffLite0 {distance:8.2f}", flush=True)

    title = f"{images.name}{guided}"
    print(f"\n{samples} samples a row, {title}, seed {seed}", flush=True)
    add(None, np.asarray(held.x), 0.0)
    for row in rows:
        x, seconds = _sampled(row, folder, noise, np.asarray(held.label), sampler_key)
        pictures[f"{row.method}\n{row.steps} steps"] = x[:PICTURED].copy()
        add(row, x, seconds)
    table, picture = folder / "results.csv", folder / "samples.png"
    with whole(table) as part, part.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *results])
    draw(pictures, picture, title)
    print(f"\ntable:       {table}\npicture:     {picture}\ncheckpoints: {run}")
    return table


def data_moments(network, images: mc.data.Images, rows) -> mc.metrics.Moments:
    """The moments of the features of the images in `rows`, a chunk at a time."""
    chunks = (rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK))
    moments = (
        mc.metrics.Moments.of(
            mc.metrics.features(network, np.asarray(images.take(c).x))
        )
        for c in chunks
    )
    return reduce(mc.metrics.Moments.merge, moments)


def draw(pictures: dict[str, np.ndarray], path: Path, data: str) -> None:
    """One row of images for each entry, from the same noise down each column."""
    columns = max(len(x) for x in pictures.values())
    figure = Figure(
        figsize=(columns + 2.2, len(pictures) * 1.08 + 0.4), layout="constrained"
    )
    axes = figure.subplots(len(pictures), 1, squeeze=False)[:, 0]
    for axis, (name, x) in zip(axes, pictures.items(), strict=True):
        strip = np.concatenate(list((np.clip(x, -1, 1) + 1) / 2), axis=2)
        axis.imshow(strip.transpose(1, 2, 0), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(f"{data}: one noise and class down each column", fontsize=10)
    with whole(path) as part:
        figure.savefig(part, dpi=100, bbox_inches="tight")
