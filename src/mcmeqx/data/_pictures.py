"""A user's own pictures, PNG or JPEG, in a folder or a zip that is never unpacked.

What a stranger's file may cost is bounded before it is decoded: its bytes, its pixels,
and the size it is enlarged to. Names that would lead out of a zip are refused.
"""

import io
import warnings
from pathlib import Path

import numpy as np

from mcmeqx._packages import optional
from mcmeqx.data._crop import cropped
from mcmeqx.data._picture_labels import labelled
from mcmeqx.data._picture_store import Folder, Zip
from mcmeqx.data._source import AbstractSource

# ImageNet's largest picture has 61 million.
_MOST_PIXELS = 2**26
# 16-bit greys are missing: Pillow would clip them.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")


class Pictures(AbstractSource):
    """PNG and JPEG files in a folder or a zip, as RGB, what is transparent on white.

    Labels are those of `dataset.json` where there is one, as EDM writes it; else there
    is a class for each top-level folder, in the order of their names, or a single one
    where no picture lies in a folder. Examples stand in the order of their names.
    Hidden files and files of other kinds are left out, and turns that a camera notes
    (EXIF) are not made.

    With `side`, pictures are shrunk or enlarged to it and cropped as ADM does (Dhariwal
    & Nichol 2021): `cropped`. Without, they must be square and of one size already.

    Raises `FileNotFoundError` where there is no picture; `ValueError` for labels that
    do not fit, and, when it is read, for a picture that is damaged, is of another size,
    or has more than 2^26 pixels or 64 MiB; `ImportError` without Pillow.
    """

    def __init__(self, path: Path, *, side: int | None = None) -> None:
        if side is not None and side < 1:
            raise ValueError(f"side is {side}, expected at least 1")
        path = Path(path)
        _pillow()
        self._store = Folder(path) if path.is_dir() else Zip(path)
        self._names, self._labels, self.classes = labelled(self._store)
        self.name = path.stem
        self._wanted = side
        self._side = self._read(0).shape[0] if side is None else side

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, side, side)."""
        return 3, self._side, self._side

    def __len__(self) -> int:
        return len(self._names)

    def raw(self, i: int) -> tuple[np.ndarray, int]:
        """Pixels uint8 (side, side, 3) and label of picture `i`."""
        pixels = self._read(i)
        if len(pixels) != self._side:
            raise ValueError(
                f"{self._where(i)} is {len(pixels)} pixels wide, "
                f"{self._where(0)} is {self._side}: give a side to bring them to"
            )
        return pixels, self._labels[i]

    def _where(self, i: int) -> str:
        return f"{self._names[i]} in {self._store.path}"

    def _read(self, i: int) -> np.ndarray:
        picture = decoded(self._store.read(self._names[i]), self._where(i))
        if self._wanted is not None:
            picture = cropped(picture, self._wanted, self._where(i))
        elif picture.width != picture.height:
            raise ValueError(
                f"{self._where(i)} is {picture.width}x{picture.height}, not square: "
                "give a side to crop to"
            )
        return np.asarray(picture)


def decoded(data: bytes, where: str):
    """The Pillow image of a PNG or JPEG file in RGB, what is transparent on white.

    Raises `ValueError` that names `where`, before decoding for more than 2^26 pixels.
    """
    image = _pillow()
    # Pillow's own limit is above this one, and only a warning below twice that.
    hostile = (image.DecompressionBombError, image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            picture = image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if picture.width * picture.height > _MOST_PIXELS:
            raise image.DecompressionBombError(f"more than {_MOST_PIXELS} pixels")
        picture.load()
    except hostile as error:
        raise ValueError(
            f"{where} is too large to decode ({error}): shrink it, or take it out"
        ) from error
    # A damaged file makes Pillow raise nearly anything, SyntaxError among it.
    except Exception as error:
        raise ValueError(
            f"{where} is no PNG or JPEG picture, or a damaged one ({error!r}): "
            "replace it, or take it out"
        ) from error
    if picture.mode not in _MODES:
        raise ValueError(
            f"{where} has mode {picture.mode}, expected one of {_MODES}: "
            "save it with 8 bits a channel"
        )
    # Pillow makes such levels 8 bits wide, but not the one that is transparent. A PNG
    # says its bits in its byte 24.
    named = picture.mode in ("L", "RGB") and "transparency" in picture.info
    if named and data[24] != 8:
        raise ValueError(
            f"{where} has a transparent colour of {data[24]} bits a channel: "
            "save it with 8"
        )
    if picture.has_transparency_data:
        drawn = picture.convert("RGBA")
        white = image.new("RGBA", drawn.size, "white")
        picture = image.alpha_composite(white, drawn)
    return picture.convert("RGB")


def _pillow():
    return optional("PIL.Image", "demo")
