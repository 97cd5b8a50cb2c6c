"""Teacher against student from the same noise: a table of distances and a picture.

Every row samples from one noise and one list of classes. Its samples are kept, so an
interrupted comparison goes on at the row it had reached. Distances are Frechet
distances on EfficientNet-Lite0's features, not comparable with published FID, which is
on another network's: to the data, which says how good the samples are, and to the
first row, the teacher's 256 DDIM steps, which says what the fewer steps lost.
"""

import csv
import shlex
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _pictures import draw
from _rows import Row, sampled
from _runs import at_least, file_name, whole
from tqdm import tqdm

import mcmeqx as mc

COLUMNS: tuple[str, ...] = (
    "method",
    "steps",
    "evaluations",
    "guidance",
    "distance_to_data",
    "distance_to_teacher",
    "data",
    "feature_network",
    "samples",
    "reference",
    "seed",
    "training_seed",
    "weights",
    "iterations",
    "training_seconds",
    "sampling_seconds",
    "command",
)
PICTURED = 12
_CHUNK = 256


def feature_network(
    images: mc.data.Images, *, samples: int, seed: int
) -> mc.metrics.EfficientNetLite0:
    """What `compare` needs; an error, before hours are spent, if it could not work.

    Few samples are compared on few features, which their covariance can fill.
    """
    at_least(2, samples=samples)
    at_least(0, seed=seed)
    if len(images) < 2 * samples:
        raise ValueError(
            f"{samples} samples need {2 * samples} images for the floor and the "
            f"reference, {images.name} has {len(images)}: ask for {len(images) // 2} "
            "samples or fewer"
        )
    return mc.metrics.EfficientNetLite0.for_samples(samples)


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
    data = data_moments(network, images, order[samples:])
    labels = np.asarray(held.label)
    title = f"{images.name}{guided}"
    print(f"\n{samples} samples a row, {title}, seed {seed}", flush=True)

    results: list[dict[str, Any]] = [{"method": "data against data (floor)"}]
    moments, pictures = [moments_of(network, np.asarray(held.x))], {}
    for row in rows:
        x, seconds = sampled(row, folder, noise, labels, sampler_key)
        results.append(row.record() | {"sampling_seconds": f"{seconds:.1f}"})
        moments.append(moments_of(network, x))
        pictures[f"{row.method}\n{row.steps} steps"] = x[:PICTURED].copy()
    for result, own in zip(results, moments, strict=True):
        for column, other in (("data", data), ("teacher", moments[1])):
            distance = mc.metrics.frechet_distance(own, other)
            result[f"distance_to_{column}"] = f"{distance:.2f}"
    about = {
        "guidance": "" if guidance is None else guidance,
        "data": images.name,
        "feature_network": network.name,
        "samples": samples,
        "reference": len(images) - samples,
        "seed": seed,
        "training_seed": training_seed,
        "command": shlex.join(["python", *sys.argv]),
    }
    table, picture = folder / "results.csv", folder / "samples.png"
    _write(table, [about | result for result in results])
    draw(pictures, picture, f"{title}: one noise and class down each column")
    print(f"\ntable:       {table}\npicture:     {picture}\ncheckpoints: {run}")
    return table


def _write(table: Path, results: list[dict[str, Any]]) -> None:
    """Print the distances and write all columns, the file whole or not at all."""
    header = f"{results[0]['feature_network']}: to"
    print(f"{header:40}{'data':>10}{'teacher':>10}")
    for result in results:
        print(
            f"{result['method']:29}{result.get('steps', 0):5d} steps"
            f"{result['distance_to_data']:>10}{result['distance_to_teacher']:>10}"
        )
    with whole(table) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(results)


def data_moments(network, images: mc.data.Images, rows) -> mc.metrics.Moments:
    """The moments of the features of the images in `rows`, a chunk at a time."""
    starts = tqdm(range(0, len(rows), _CHUNK), desc="features of the data", leave=False)
    chunks = (images.take(rows[i : i + _CHUNK]).x for i in starts)
    moments = (moments_of(network, np.asarray(x)) for x in chunks)
    return reduce(mc.metrics.Moments.merge, moments)


def moments_of(network, x: np.ndarray) -> mc.metrics.Moments:
    """The moments of the features of images, cut to [-1, 1]."""
    return mc.metrics.Moments.of(mc.metrics.features(network, np.clip(x, -1, 1)))
