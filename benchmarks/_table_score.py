"""What a cell scores: the Frechet distance of its samples to the data, chunk by chunk.

Chunks of features are kept on disk, so a run that was cut goes on where it was.
"""

import time
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _compare import data_moments
from _runs import whole

import mcmeqx as mc
from mcmeqx.metrics import EfficientNetLite0, Moments, features, frechet_distance

CHUNK = 500
_BATCH = 50


def reference(images: mc.data.Images, network: EfficientNetLite0, file: Path):
    """Moments of the features of all images, from `file` if they are there."""
    if not file.exists():
        moments = data_moments(network, images, np.arange(len(images)))
        with whole(file) as part, part.open("wb") as stream:
            np.savez(stream, **vars(moments))
    with np.load(file) as stored:
        return Moments(int(stored["count"]), stored["mean"], stored["scatter"])


def floor(
    images: mc.data.Images, network: EfficientNetLite0, samples: int, seed: int
) -> float:
    """The distance of `samples` of the images to the others."""
    order = np.random.default_rng(seed).permutation(len(images))
    held, rest = (
        data_moments(network, images, rows) for rows in np.split(order, [samples])
    )
    return frechet_distance(held, rest)


def score(
    model: mc.Denoiser,
    sampler: mc.AbstractSampler,
    steps: int,
    images: mc.data.Images,
    network: EfficientNetLite0,
    data: Moments,
    *,
    samples: int,
    seed: int,
    folder: Path,
    describe: str,
) -> dict[str, Any]:
    """Distance to the data, and the seconds that sampling took."""
    chunks = []
    for i in range(-(-samples // CHUNK)):
        file = folder / f"{i:04d}.npz"
        if not file.exists():
            rows = min(CHUNK, samples - i * CHUNK)
            x, seconds = _chunk(
                model, sampler, steps, images, rows, (seed, i), f"{describe}, {i}"
            )
            with whole(file) as part, part.open("wb") as stream:
                np.savez(stream, features=features(network, x), seconds=seconds)
        with np.load(file) as stored:
            chunks.append((Moments.of(stored["features"]), float(stored["seconds"])))
    moments, seconds = zip(*chunks, strict=True)
    distance = frechet_distance(reduce(Moments.merge, moments), data)
    return {"distance": f"{distance:.3f}", "sampling_seconds": f"{sum(seconds):.1f}"}


def _chunk(model, sampler, steps, images, rows, seed, describe):
    """`rows` samples, whose noise and labels `seed` alone decides."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((rows, *images.shape), np.float32)
    labels = images.labels[rng.integers(len(images), size=rows)]
    key = jax.random.key(int(rng.integers(2**31)))
    begun = time.perf_counter()
    x = mc.generate(
        model,
        sampler,
        mc.uniform_grid(steps),
        noise,
        labels,
        key=key,
        batch_size=_BATCH,
        describe=describe,
    )
    return np.clip(x, -1, 1), time.perf_counter() - begun
