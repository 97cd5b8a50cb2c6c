"""Metrics of a model's samples, or of any program's images, against data.

    python benchmarks/evaluate.py --checkpoint student.eqx --steps 8 --samples 50000 \
        --data imagenet64 --data-path DIR --network inception --weights PTH
    python benchmarks/evaluate.py --images samples.npz --samples 5000 --data openmoji

The checkpoint is whatever `mcmeqx.load` reads. Adds a row a seed to a table and writes
a metric card beside it. Samples are rounded to 256 levels, as image files hold them.
Each result says against what it was measured, by which network, behind which resize.
The same command goes on where it was stopped, and does nothing twice, unless the code
of the metrics has changed.
"""

import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from _data_sets import DATA, read_pixels
from _evaluation import drawn_labels, evaluate, evaluate_images
from _image_model import guided, image_model, image_shape
from _measured_data import Data, from_images, from_statistics
from _networks import NETWORKS
from _recipes import at_least, file_name
from _results import COLUMNS, add_row, write_card
from _tables import read_rows

import mcmeqx as mc

Measure = Callable[[Data], Iterator[dict[str, Any]]]

SAMPLERS: dict[str, mc.AbstractSampler] = {
    "ddim": mc.DDIM(),
    "addim": mc.ADDIM(),
    "ddpm": mc.DDPM(),
    "heun": mc.Heun(),
    "dpm-solver": mc.DPMSolver(),
}


@dataclass(frozen=True)
class Config:
    """What to measure, and against what."""

    checkpoint: Path | None = None
    """Model file, exported weights or checkpoint folder."""
    images: Path | None = None
    """Instead of a checkpoint: an npz with the array arr_0, uint8 (n, height, width,
    channel), or a folder or zip of square pictures, as large as those of the data."""
    steps: int = 8
    """Steps of the sampler."""
    sampler: Literal["ddim", "addim", "ddpm", "heun", "dpm-solver"] = "ddim"
    """How the model is sampled."""
    guidance: float | None = None
    """Scale of guidance; two evaluations a step of a model that has no input for it."""
    samples: int = 50_000
    """Number of samples."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of noise and classes, or of the choice of images."""
    data: Literal["openmoji", "emoji64", "fashion_mnist", "cifar10", "imagenet64"] = (
        "openmoji"
    )
    """What to measure against: the whole of the set's training part."""
    data_path: Path | None = None
    """Where the data are, for sets that are not found by themselves."""
    statistics: Path | None = None
    """Instead of data, a file of statistics: ours, ADM's, EDM's, EDM2's. A model's
    classes are then drawn equally often, not as often as the data have them."""
    network: Literal[
        "efficientnet", "efficientnet-block5", "inception", "inception-pytorch-fid"
    ] = "efficientnet"
    """Feature network; with less than some 2,000 samples take efficientnet-block5."""
    weights: Path | None = None
    """FID's Inception: the file pt_inception-2015-12-05-6726825d.pth."""
    weights_sha256: str | None = None
    """Hash of `weights`, if they are others than those of published figures."""
    batch_size: int = 64
    """Images at a time; changes nothing but speed."""
    out: Path = Path("runs/evaluate")
    """Folder of what is under way, of the cards, and of the table."""
    table: Path | None = None
    """Table to add rows to; None is evaluations.csv in `out`."""


def main(config: Config) -> Path:
    """Measure each seed, add what the table lacks, and return the table."""
    if (config.checkpoint is None) == (config.images is None):
        raise ValueError("give --checkpoint or --images, and not both")
    if config.images is not None and config.guidance is not None:
        raise ValueError("--guidance is for a --checkpoint, images are as they are")
    if config.statistics is not None and config.data_path is not None:
        raise ValueError("give --statistics or --data-path, and not both")
    at_least(
        1, seeds=len(config.seeds), steps=config.steps, batch_size=config.batch_size
    )
    at_least(2, samples=config.samples)
    at_least(0, **{f"seeds[{i}]": seed for i, seed in enumerate(config.seeds)})
    if len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"seeds are {config.seeds}: give each once")
    table = config.table or config.out / "evaluations.csv"
    read_rows(table, COLUMNS)
    source = config.checkpoint or config.images
    assert source is not None
    network = NETWORKS[config.network](config.weights, config.weights_sha256)
    images = None
    if config.statistics is None:
        images = DATA[config.data](config.data_path)
    # What is measured comes first: features of the data may take hours.
    options: dict[str, Any] = {"name": source.name, "guidance": ""}
    shared = 0.0
    if config.checkpoint is not None:
        options |= {"steps": config.steps, "sampler": config.sampler}
        options |= {} if config.guidance is None else {"guidance": config.guidance}
        model = image_model(source, images)
        measured, shape = _of_model(config, model, images), image_shape(model)
    else:
        pixels = read_pixels(source)
        measured = _of_images(config, pixels, images)
        shared = config.samples / max(len(pixels) - config.samples, 1)
        shape = (pixels.shape[3], *pixels.shape[1:3])
    folder, size = config.out / "features", config.batch_size
    if config.statistics is not None:
        data = from_statistics(
            config.statistics, network, folder, shape=shape, batch_size=size
        )
    else:
        assert images is not None
        data = from_images(images, network, folder, batch_size=size)
    about = data.reference
    print(f"against {about.name}, {about.count} images: {about.network}", flush=True)
    options["command"] = shlex.join(["python", *sys.argv])
    rows = []
    for result in measured(data):
        rows.append(result | options)
        add_row(table, rows[-1])
        numbers = (f"{k} {result[k]:.6g}" for k in ("frechet", "floor") if k in result)
        print(f"seed {result['seed']}: {', '.join(numbers)}", flush=True)
    card = _card(config.out, source, rows, shared)
    print(f"table: {table}\ncard:  {card}")
    return table


def _card(
    folder: Path, source: Path, rows: list[dict[str, Any]], shared: float
) -> Path:
    ids = "".join(row["id"] for row in rows)
    named = rows[0]["id"] if len(rows) == 1 else sha256(ids.encode()).hexdigest()[:16]
    card = folder / f"{file_name(source.stem)}_{named}.json"
    versions = {name: version(name) for name in ("mcmeqx", "jax", "numpy")}
    summary = write_card(card, rows, shared=shared, versions=versions)
    for metric, value in summary.items():
        interval = value.get("interval")
        around = "" if interval is None else f" [{interval[0]:.6g}, {interval[1]:.6g}]"
        print(f"{metric:20} {value['mean']:.6g}{around}")
    return card


def _of_images(
    config: Config, pixels: np.ndarray, images: mc.data.Images | None
) -> Measure:
    samples = config.samples
    if len(pixels) < samples:
        raise ValueError(f"{samples} samples are asked for, of {len(pixels)} images")
    if len(pixels) == samples and len(config.seeds) > 1:
        raise ValueError(
            f"all {samples} images are asked for, which are the same for every one of "
            f"{len(config.seeds)} seeds: give one seed, or fewer samples"
        )
    if images is not None and pixels.shape[1:] != images.pixels.shape[1:]:
        raise ValueError(
            f"{config.images} has images of {pixels.shape[1:]}, {images.name} of "
            f"{images.pixels.shape[1:]} (height, width, channel): features of other "
            "sizes do not compare"
        )

    def measured(data: Data) -> Iterator[dict[str, Any]]:
        for seed in config.seeds:
            yield evaluate_images(
                pixels,
                samples=samples,
                seed=seed,
                data=data,
                folder=config.out / "samples",
                batch_size=config.batch_size,
            )

    return measured


def _of_model(config: Config, model: Any, images: mc.data.Images | None) -> Measure:
    about, shape = model.network.config, image_shape(model)
    classes = np.arange(about.classes or 0) if images is None else images.labels
    model, guidance = guided(model, config.guidance)

    def measured(data: Data) -> Iterator[dict[str, Any]]:
        for seed in config.seeds:
            labels = None
            if about.classes:
                labels = drawn_labels(classes, config.samples, seed).astype(np.int32)
            yield from evaluate(
                model,
                SAMPLERS[config.sampler],
                mc.uniform_grid(config.steps),
                shape=shape,
                labels=labels,
                samples=config.samples,
                seed=seed,
                against=[data],
                folder=config.out / "samples",
                guidance=guidance,
                batch_size=config.batch_size,
            )

    return measured


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
