"""Rows of images as a picture."""

from pathlib import Path

import jax
import numpy as np
from _runs import whole
from matplotlib.figure import Figure

import mcmeqx as mc


def from_one_noise(
    models: dict[str, tuple[mc.Denoiser, int]],
    noise: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Each model's samples in its number of DDIM steps, under its name: for `draw`."""
    return {
        name: mc.generate(
            model,
            mc.DDIM(),
            mc.uniform_grid(steps),
            noise,
            labels,
            key=jax.random.key(seed),
            describe=name,
        )
        for name, (model, steps) in models.items()
    }


def check_new(path: Path) -> None:
    """ValueError unless a picture can be written to `path`, where there is no file."""
    if path.exists():
        raise ValueError(f"{path} is there already: give another --out")
    known = [f".{name}" for name in sorted(Figure().canvas.get_supported_filetypes())]
    if path.suffix not in known:
        raise ValueError(f"{path} is to end in one of {', '.join(known)}: give --out")


def draw(pictures: dict[str, np.ndarray], path: Path, title: str) -> None:
    """One row of images, (n, channel, height, width) in [-1, 1], for each entry."""
    columns = max(len(x) for x in pictures.values())
    figure = Figure(
        figsize=(columns + 2.2, len(pictures) * 1.08 + 0.4), layout="constrained"
    )
    axes = figure.subplots(len(pictures), 1, squeeze=False)[:, 0]
    for axis, (name, x) in zip(axes, pictures.items(), strict=True):
        strip = np.concatenate(list((np.clip(x, -1, 1) + 1) / 2), axis=2)
        strip = np.broadcast_to(strip, (3, *strip.shape[1:]))
        axis.imshow(strip.transpose(1, 2, 0), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title, fontsize=10)
    with whole(path) as part:
        figure.savefig(part, dpi=100, bbox_inches="tight")
