"""Quality against evaluations, a line a method: the picture of the table."""

from pathlib import Path

import numpy as np
from _runs import whole
from _table_text import grouped
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_MANY = 256
EARLY = "frechet_block3", "floor_block3"
"""Columns of the distance on an early layer's few features, and of its floor."""


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """A panel for each of the two distances, and one legend."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, 2)
    _panel(panels[0], rows, "frechet", "floor")
    _panel(panels[1], rows, *EARLY)
    about = f"{rows[0]['data']}, {rows[0]['samples']} samples"
    panels[0].set_ylabel(f"Frechet distance to {about}")
    panels[0].set_title(rows[0]["network"])
    panels[1].set_title("its third block, 24-d")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right upper")
    with whole(path) as part:
        figure.savefig(part, dpi=120)


def _panel(axes: Axes, rows: list[dict[str, str]], metric: str, floor: str) -> None:
    """Mean over seeds with the range, log axes; floor and teacher as bands."""
    groups = grouped(rows, metric)
    shades = color_sequences["tab20"]
    axes.set_prop_cycle(color=[*shades[::2], *shades[1::2]])
    bands = {
        "data against data": ("0.6", [float(row[floor]) for row in rows if row[floor]]),
        f"teacher, {_MANY} DDIM steps": ("0.3", groups.get("DDIM", {}).get(_MANY)),
    }
    for label, (shade, values) in bands.items():
        if values:
            axes.axhspan(min(values), max(values), color=shade, alpha=0.5, label=label)
    for method, points in groups.items():
        few = {n: v for n, v in sorted(points.items()) if n < _MANY}
        if not few:
            continue
        means = np.array([np.mean(v) for v in few.values()])
        spread = [
            means - [min(v) for v in few.values()],
            np.array([max(v) for v in few.values()]) - means,
        ]
        student = method.startswith(("CD", "CT"))
        line = "o-" if student else "s--"
        axes.errorbar(list(few), means, spread, fmt=line, ms=4, lw=1.2, label=method)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations a sample")
    axes.set_xticks([1, 2, 4, 8, 16], labels=["1", "2", "4", "8", "16"])
