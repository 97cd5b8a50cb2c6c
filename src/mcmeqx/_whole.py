"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def check_absent(path: Path) -> None:
    """FileExistsError if there is something at `path`."""
    if path.exists():
        raise FileExistsError(f"{path} exists: delete it, or give another name")


@contextmanager
def written_whole(path: Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when the block ends without an error.

    Until then it is `<path>.<random>.tmp`: an error removes it, and one that a killed
    process leaves behind is never read. Folders above `path` are made. A `new` one
    replaces nothing: FileExistsError if by then there is something at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are for one user alone, and a cache may be shared.
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with unfinished.open("xb") as file:
            yield file
            # Else a crash of the machine could leave the name without the contents.
            file.flush()
            os.fsync(file.fileno())
        if new:
            check_absent(path)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
