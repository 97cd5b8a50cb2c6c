"""CSV tables whose columns are known, and to which rows are added."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_rows(table: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a table, none of one that is not there yet.

    Raises ValueError for a table with other columns.
    """
    if not table.exists():
        return []
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != columns:
        raise ValueError(f"{table} has other columns: write to another one")
    return rows


@contextlib.contextmanager
def appended(table: Path, columns: tuple[str, ...]) -> Iterator[csv.DictWriter]:
    """What adds rows to a table, each on disk at once.

    Raises ValueError for a table with other columns.
    """
    read_rows(table, columns)
    table.parent.mkdir(parents=True, exist_ok=True)
    new = not table.exists()
    with table.open("a", newline="", buffering=1) as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        yield writer
