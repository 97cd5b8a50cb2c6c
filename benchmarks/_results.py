"""A table that rows are only ever added to, and a card with mean and interval."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from _recipes import whole
from _scores import METRICS
from _tables import read_rows
from filelock import FileLock
from scipy.special import stdtrit

COLUMNS: tuple[str, ...] = (
    "name",
    "steps",
    "sampler",
    "guidance",
    "samples",
    "seed",
    *METRICS,
    "network",
    "resize",
    "reference",
    "reference_samples",
    "reference_sha256",
    "model",
    "id",
    "command",
)


def add_row(
    table: Path,
    row: dict[str, Any],
    columns: tuple[str, ...] = COLUMNS,
    key: tuple[str, ...] = ("id",),
) -> bool:
    """Adds the row unless one that is the same in the columns `key` is there.

    Gives whether it did.

    Several programs may add to one table. Raises ValueError for one with other columns.
    """
    # A link stays one, and has the lock of its table.
    table = table.resolve()
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table.with_name(f".{table.name}.lock")):
        rows = read_rows(table, columns)
        if any(all(other[k] == str(row[k]) for k in key) for other in rows):
            return False
        with whole(table) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*rows, row])
    return True


def write_card(
    path: Path, rows: list[dict[str, Any]], *, shared: float = 0.0, **about: Any
) -> dict[str, Any]:
    """The card of one evaluation's seeds, written whole; returns its summary.

    That is the mean of each metric and, where seeds differ in it, its 95% interval by
    Student's t: of the mean, over sampling seeds alone. Where each seed chooses n of
    the same N images, `shared` is n / (N - n): choices overlap, and differ by less than
    they err.
    """
    summary = {}
    for metric in METRICS:
        values = [row[metric] for row in rows if metric in row]
        if values:
            summary[metric] = {"mean": float(np.mean(values))}
        if len(values) > 1 and np.ptp(values) > 0:
            t = float(stdtrit(len(values) - 1, 0.975))
            variance = float(np.var(values, ddof=1)) * (1.0 / len(values) + shared)
            half = t * math.sqrt(variance)
            mean = summary[metric]["mean"]
            summary[metric]["interval"] = [mean - half, mean + half]
    card = about | {"seeds": [row["seed"] for row in rows], "summary": summary}
    with whole(path) as part:
        part.write_text(json.dumps(card | {"rows": rows}, indent=1) + "\n")
    return summary
