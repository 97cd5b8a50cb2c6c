"""Teacher against student from the same noise: a table of distances and a picture.

Every row samples from one noise and one list of classes. Its samples are kept, so an
interrupted comparison goes on at the row it had reached. The distance is a Frechet
distance on EfficientNet-Lite0's features: not comparable with published FID, which is
on another network's.
"""

import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import matplotlib
import numpy as np

import mcmeqx as mc

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLUMNS = (
    "method",
    "steps",
    "frechet_distance",
    "data",
    "feature_network",
    "samples",
    "reference",
    "seed",
    "iterations",
    "seconds",
)


@dataclass(frozen=True)
class Row:
    """One line of the table: a model, how it is sampled, and its training length."""

    method: str
    model: mc.Denoiser
    sampler: mc.AbstractSampler
    steps: int
    iterations: int | str


def teacher_rows(teacher: mc.Denoiser, steps: int, iterations: int | str) -> list[Row]:
    """The teacher at 256 and at `steps` steps, with DDIM and with aDDIM."""
    samplers = (("DDIM", mc.DDIM()), ("aDDIM", mc.ADDIM()))
    return [
        Row(f"teacher, {name}", teacher, sampler, n, iterations)
        for n in dict.fromkeys((256, steps))
        for name, sampler in samplers
    ]


def _sampled(row: Row, run: Path, noise, labels, key) -> tuple[np.ndarray, float]:
    name = row.method.replace(", ", "_").replace(" ", "_")
    path = run / "samples" / f"{name}_{row.steps}.npz"
    if path.exists():
        stored = np.load(path)
        return stored["x"], float(stored["seconds"])
    begun = time.perf_counter()
    grid = mc.uniform_grid(row.steps)
    describe = f"{row.method}, {row.steps} steps"
    x = mc.generate(
        row.model,
        row.sampler,
        grid,
        noise,
        labels,
        key=key,
        batch_size=32,
        describe=describe,
    )
    seconds = time.perf_counter() - begun
    path.parent.mkdir(exist_ok=True)
    part = path.with_name("part.npz")
    np.savez(part, x=x, seconds=seconds)
    os.replace(part, path)
    return x, seconds


def compare(
    rows: list[Row], run: Path, images: mc.data.Images, *, samples: int, seed: int
) -> Path:
    """Write `results.csv` and `samples.png` in `run`, print both; the table's path."""
    if len(images) < 2 * samples:
        raise ValueError(
            f"{samples} samples need {2 * samples} images for the floor and the "
            f"reference, {images.name} has {len(images)}"
        )
    order = np.random.default_rng([seed, 1]).permutation(len(images))
    noise_key, sampler_key = jax.random.split(jax.random.key(seed + 1))
    noise = jax.random.normal(noise_key, (samples, *images.shape), np.float32)
    held = images.take(order[:samples])
    labels = np.asarray(held.label)
    network = mc.metrics.EfficientNetLite0.load()

    def moments(x) -> mc.metrics.Moments:
        return mc.metrics.Moments.of(mc.metrics.features(network, np.clip(x, -1, 1)))

    reference = moments(np.asarray(images.take(order[samples:]).x))
    results, pictures = [], {}

    def add(method: str, steps: int, x, iterations: int | str, seconds: float) -> None:
        distance = mc.metrics.frechet_distance(moments(x), reference)
        values = (method, steps, f"{distance:.2f}", images.name, network.name, samples)
        results.append(
            (*values, len(images) - samples, seed, iterations, f"{seconds:.1f}")
        )
        print(f"{method:32} {steps:5d} steps   FD-EffLite0 {distance:8.2f}", flush=True)

    print(f"\n{samples} samples a row, {images.name}, seed {seed}", flush=True)
    add("data against data (floor)", 0, np.asarray(held.x), 0, 0.0)
    for row in rows:
        x, seconds = _sampled(row, run, noise, labels, sampler_key)
        pictures[f"{row.method}\n{row.steps} steps"] = x[:12]
        add(row.method, row.steps, x, row.iterations, seconds)
    table, part = run / "results.csv", run / "results.csv.part"
    with part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(results)
    os.replace(part, table)
    picture = draw(pictures, run / "samples.png", images.name)
    print(f"\ntable:       {table}\npicture:     {picture}\ncheckpoints: {run}")
    return table


def draw(pictures: dict[str, np.ndarray], path: Path, data: str) -> Path:
    """One row of images for each entry, from the same noise down each column."""
    columns = max(len(x) for x in pictures.values())
    figure, axes = plt.subplots(
        len(pictures), 1, figsize=(columns + 2.2, len(pictures) * 1.08 + 0.4)
    )
    for axis, (name, x) in zip(np.atleast_1d(axes), pictures.items(), strict=True):
        strip = np.concatenate(list((np.clip(x, -1, 1) + 1) / 2), axis=2)
        axis.imshow(strip.transpose(1, 2, 0), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(f"{data}: one noise and class down each column", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
