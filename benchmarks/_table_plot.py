"""Quality against evaluations, a line a method: the picture of the table."""

from pathlib import Path

import numpy as np
from _runs import whole
from _table_text import grouped
from matplotlib.figure import Figure

_MANY = 256


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Mean over seeds with the range, log axes; floor and teacher as bands."""
    groups = grouped(rows)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    bands = [("data against data", [float(row["floor"]) for row in rows])]
    many = groups.get("DDIM", {}).get(_MANY)
    if many:
        bands.append((f"teacher, {_MANY} DDIM steps", many))
    for (label, values), shade in zip(bands, ("0.6", "0.3"), strict=False):
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
    axes.set_ylabel(
        f"Frechet distance to {rows[0]['data']}, {rows[0]['samples']} samples"
    )
    axes.legend(fontsize=8)
    with whole(path) as part:
        figure.savefig(part, dpi=120)
