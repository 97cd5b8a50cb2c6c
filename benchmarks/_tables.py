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
    if not table.exists() or not table.stat().st_size:
        return []
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        names = tuple(reader.fieldnames or ())
        rows = list(reader)
    if names != columns:
        raise ValueError(f"{table} has other columns: write to another one")
    return rows


@contextlib.contextmanager
def appended(table: Path, columns: tuple[str, ...]) -> Iterator[csv.DictWriter]:
    """What adds rows to a table, each on disk at once.

    Raises ValueError for a table with other columns.
    """
    read_rows(table, columns)
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("a+", newline="", buffering=1) as file:
        writer = csv.DictWriter(file, columns)
        file.seek(0)
        there = file.read()
        if not there:
            writer.writeheader()
        elif not there.endswith("\n"):
            file.write("\r\n")
        yield writer
