"""Arrays that are slow to make, kept in one npz file, written whole or not at all.

A file is trusted only if every array in it decompresses to its checksum (a zip's CRC)
and if it was made from the same inputs, which the `key` stored in it says.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mcmeqx._whole import written_whole
from mcmeqx._zips import ZIP_DAMAGE

Arrays = dict[str, np.ndarray]

_KEY = "key"
_DAMAGE = (*ZIP_DAMAGE, KeyError, ValueError)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/mcmeqx`, or `~/.cache/mcmeqx` if that is unset or relative."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "mcmeqx"


def cached(path: Path | str, key: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays of `build()`, read from the npz file `path` if it was made for `key`.

    A file made for another key is written anew. One that is truncated or otherwise
    damaged is too, with a `RuntimeWarning`. Where `path` cannot be read or written the
    arrays are returned all the same, with a `RuntimeWarning`. Raises ValueError for a
    file that was never a cache.
    """
    path = Path(path)
    try:
        arrays = _load(path, key)
    except OSError as error:
        warnings.warn(f"no cache read: {error}", RuntimeWarning, stacklevel=3)
        arrays = None
    if arrays is None:
        arrays = build()
        try:
            _store(path, {**arrays, _KEY: np.array(key)})
        except OSError as error:
            warnings.warn(f"no cache kept: {error}", RuntimeWarning, stacklevel=3)
    return arrays


def _load(path: Path, key: str) -> Arrays | None:
    if not path.exists():
        return None
    with path.open("rb") as stream:
        if stream.read(2) not in (b"PK", b"P", b""):
            raise _foreign(path)
    try:
        # Opened here, since np.load leaves a file that is no whole zip open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            ours = _KEY in file.files
            arrays = {name: file[name] for name in file.files if ours}
    except _DAMAGE as error:
        text = f"cache {path} is damaged ({error!r}): it is made anew"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
        return None
    if not ours:
        raise _foreign(path)
    return arrays if str(arrays.pop(_KEY)) == key else None


def _foreign(path: Path) -> ValueError:
    return ValueError(
        f"{path} was not written as a cache, and stays as it is: give another path, or "
        "move it away"
    )


def _store(path: Path, arrays: Arrays) -> None:
    with written_whole(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
