"""Rows of images as a picture."""

from pathlib import Path

import numpy as np
from _runs import whole
from matplotlib.figure import Figure


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
