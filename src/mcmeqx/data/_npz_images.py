"""Images of any program in one npz file."""

from pathlib import Path

import numpy as np

from mcmeqx.data._npz import Npz


def npz_images(path: Path) -> np.ndarray:
    """The images in an npz file, uint8 (n, height, width, channel), read-only.

    They are the array `arr_0`, as NumPy names one that was given no name and ADM's
    programs do. Raises FileNotFoundError, and ValueError for a damaged file and for
    arrays of another kind.
    """
    with Path(path).open("rb") as file:
        npz = Npz(file, str(path))
        shape, dtype = npz.header("arr_0")
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise ValueError(
                f"{path}: arr_0 is {dtype} of shape {shape}, expected uint8 "
                "(n, height, width, 1 or 3)"
            )
        return npz.array("arr_0")
