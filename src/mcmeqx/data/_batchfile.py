"""The batch files of CIFAR-10 and of downsampled ImageNet: `data` and `labels`.

`data` is uint8 (n, 3 side^2); a row is the red plane, the green and the blue, each row
by row. `labels` are integers. Some are npz files and some are pickles, which what they
begin with tells apart.
"""

from typing import Any

import numpy as np

from mcmeqx.data._npz import Npz
from mcmeqx.data._pickles import Readable, unpickle

# The ten training batches of ImageNet have 128,117 rows at most.
_MOST_ROWS = 200_000


def batch_labels(
    file: Readable, where: str, *, side: int, numbers: range
) -> np.ndarray:
    """Labels int32 (n,) of a batch file, of which `numbers[0]` becomes 0.

    Of an npz file the pixels' header alone is read, of a pickle everything. `where`
    names the file in the `ValueError` for what is not as the module says, for a label
    outside `numbers`, and for more than 200,000 rows.
    """
    if _is_zip(file):
        npz = Npz(file, where)
        rows = _rows(*npz.header("data"), where, side)
        labels: Any = _checked(npz, rows, where)
    else:
        fields = _fields(file, where)
        rows = _rows(fields["data"].shape, fields["data"].dtype, where, side)
        labels = fields["labels"]
    return _numbered(labels, rows, where, numbers)


def batch_pixels(file: Readable, where: str, *, side: int) -> np.ndarray:
    """Pixels uint8 (n, side, side, 3) of a batch file, as a view; raises as above."""
    if _is_zip(file):
        npz = Npz(file, where)
        _rows(*npz.header("data"), where, side)
        data = npz.array("data")
    else:
        data = _fields(file, where)["data"]
        _rows(data.shape, data.dtype, where, side)
    return data.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


def _is_zip(file: Readable) -> bool:
    start = file.read(2)
    file.seek(0)
    return start == b"PK"


def _fields(file: Readable, where: str) -> dict[str, Any]:
    fields = unpickle(file, where)
    for name in ("data", "labels"):
        if name not in fields:
            found = ", ".join(sorted(fields)) or "nothing"
            raise ValueError(f"{where} holds {found}, expected {name}")
    if not isinstance(fields["data"], np.ndarray):
        found = type(fields["data"]).__name__
        raise ValueError(f"{where}: data is a {found}, expected an array")
    return fields


def _rows(shape: tuple[int, ...], dtype: np.dtype, where: str, side: int) -> int:
    if dtype != np.uint8 or len(shape) != 2 or shape[1] != 3 * side * side:
        raise ValueError(
            f"{where}: data is {dtype} {shape}, expected uint8 (n, {3 * side * side}) "
            f"for side {side}: give the side of these images"
        )
    if not 0 < shape[0] <= _MOST_ROWS:
        raise ValueError(f"{where}: data has {shape[0]} rows, not 1 to {_MOST_ROWS}")
    return shape[0]


def _checked(npz: Npz, rows: int, where: str) -> np.ndarray:
    shape, dtype = npz.header("labels")
    if shape != (rows,) or dtype.kind not in "iu":
        raise ValueError(
            f"{where}: labels is {dtype} {shape}, expected integers ({rows},)"
        )
    return npz.array("labels")


def _numbered(labels: Any, rows: int, where: str, numbers: range) -> np.ndarray:
    if isinstance(labels, list) and all(type(label) is int for label in labels):
        # An integer past int64 becomes an array of objects, which is refused below.
        labels = np.array(labels)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        raise ValueError(f"{where}: labels are not all integers")
    if labels.shape != (rows,):
        raise ValueError(f"{where}: {labels.shape} labels for {rows} images")
    wrong = (labels < numbers[0]) | (labels > numbers[-1])
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{where}: labels[{at}] is {labels[at]}, expected {numbers[0]} to "
            f"{numbers[-1]}"
        )
    return (labels.astype(np.int64) - numbers[0]).astype(np.int32)
