"""A set of images as one file that is mapped into memory, not read.

    one line of JSON, padded with spaces to a multiple of 4096 bytes
    pixels  uint8 (count, height, width, channel), from where the line ends
    labels  int32, little-endian, (count,)

The line holds format, version, name, classes, count, shape (height, width, channel),
made_from (in words) and sha256, the hash of all that follows the line.
"""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from mcmeqx._whole import check_absent, written_whole
from mcmeqx.data._images import Images
from mcmeqx.data._source import AbstractSource

_FORMAT = "mcmeqx images"
_VERSION = 1
_PAGE = 4096
_LONGEST_LINE = 2**24
_BLOCK = 2**22
_PACK = "`python -m mcmeqx.data.pack --help`"


class Header(NamedTuple):
    """What the first line of a packed file says."""

    name: str
    classes: tuple[str, ...]
    count: int
    shape: tuple[int, int, int]
    """(height, width, channel)."""
    made_from: str
    sha256: str

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all pixels."""
        return self.count * math.prod(self.shape)

    @property
    def line(self) -> bytes:
        """The line that says it, padded to whole pages."""
        fields = {"format": _FORMAT, "version": _VERSION, **self._asdict()}
        text = json.dumps(fields).encode()
        return text.ljust(-(-(len(text) + 1) // _PAGE) * _PAGE - 1) + b"\n"


def save_packed(source: AbstractSource, path: Path, *, made_from: str = "") -> None:
    """Writes `source` to the file `path`, image by image, with a bar.

    The file is complete or absent; what a killed process leaves, `<path>.<random>.tmp`,
    may be deleted. `made_from` says in words where the images are from. The file holds
    bytes: headroom is for `dataclasses.replace` after it is read.

    Raises `FileExistsError` where `path` exists, `OSError` where there is no room,
    `ValueError` for an empty source or for classes whose names are no texts or come
    twice, and what the source raises for bad data.
    """
    path = Path(path)
    check_absent(path)
    with written_whole(path, new=True) as file:
        write_packed(source, file, made_from)


def write_packed(source: AbstractSource, file: BinaryIO, made_from: str) -> None:
    """Writes `source` to a fresh file that is open for writing, as `save_packed`."""
    if not len(source):
        raise ValueError(f"{source.name} holds no images")
    names = source.classes
    if len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
        raise ValueError(
            f"{source.name} has classes {names}: name each by its own text"
        )
    channel, height, width = source.shape
    shape = (height, width, channel)
    header = Header(
        source.name, source.classes, len(source), shape, made_from, "0" * 64
    )
    _check_room(file, header)
    file.write(header.line)
    digest = hashlib.sha256()
    labels = np.empty(len(source), "<i4")
    for i in tqdm(range(len(source)), desc=f"packing {source.name}", unit="image"):
        pixels, label = source.raw(i)
        if pixels.dtype != np.uint8 or pixels.shape != shape:
            found = f"{pixels.dtype} {pixels.shape}"
            raise ValueError(f"{source.name}[{i}] is {found}, expected uint8 {shape}")
        if not 0 <= label < len(source.classes):
            raise ValueError(
                f"{source.name}[{i}] has label {label}, "
                f"outside [0, {len(source.classes)})"
            )
        labels[i] = label
        data = pixels.tobytes()
        file.write(data)
        digest.update(data)
    file.write(labels.tobytes())
    digest.update(labels.tobytes())
    # Last, so that an unfinished file has a hash that fails.
    file.seek(0)
    file.write(header._replace(sha256=digest.hexdigest()).line)


def packed(path: Path) -> Images:
    """The images in a file of `save_packed`, mapped: a pixel is read when it is used.

    Raises `FileNotFoundError`, and `ValueError` for a file that is truncated, of
    another kind or of another version. Compares sizes, not the hash: `check_packed`.
    """
    header, start = read_header(Path(path))
    pixels = np.memmap(path, np.uint8, "r", start, (header.count, *header.shape))
    labels = np.fromfile(path, "<i4", header.count, offset=start + header.pixel_bytes)
    # As a plain array: indexing one is quicker than indexing a memmap.
    pixels, labels = np.asarray(pixels), labels.astype(np.int32)
    try:
        return Images(pixels, labels, header.classes, header.name)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it and pack again, see {_PACK}"
        ) from error


def check_packed(path: Path) -> None:
    """Reads a packed file whole, with a bar; ValueError unless it is as it was written.

    Raises also what `packed` does.
    """
    path = Path(path)
    packed(path)
    header, start = read_header(path)
    digest = hashlib.sha256()
    total = path.stat().st_size - start
    bar = tqdm(total=total, desc=f"checking {path.name}", unit="B", unit_scale=True)
    with path.open("rb") as file, bar:
        file.seek(start)
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != header.sha256:
        raise ValueError(
            f"{path} is damaged: its sha256 is {digest.hexdigest()}, "
            f"its header says {header.sha256}; delete it and pack again"
        )


def read_header(path: Path) -> tuple[Header, int]:
    """The header of a packed file, and where its pixels begin; raises as `packed`."""
    with path.open("rb") as file:
        line = file.readline(_LONGEST_LINE)
    try:
        fields = json.loads(line)
        known = line.endswith(b"\n") and fields.pop("format") == _FORMAT
        version = fields.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known, fields, version = False, {}, None
    if not known:
        raise ValueError(f"{path} is no file of packed images: see {_PACK}")
    if version != _VERSION:
        raise ValueError(
            f"{path} has version {version!r} of packed images, this mcmeqx reads "
            f"{_VERSION}: pack it again, see {_PACK}"
        )
    header = _header(path, fields)
    expected = len(line) + header.pixel_bytes + 4 * header.count
    if (size := path.stat().st_size) != expected:
        raise ValueError(
            f"{path} has {size} bytes, expected {expected}: it is truncated or "
            f"damaged; delete it and pack again, see {_PACK}"
        )
    return header, len(line)


def _header(path: Path, fields: dict[str, Any]) -> Header:
    match fields:
        case {
            "name": str(name),
            "classes": list(classes),
            "count": int(count),
            "shape": [int(height), int(width), int(channel)],
            "made_from": str(made_from),
            "sha256": str(sha256),
        } if min(count, height, width, channel) > 0 and all(
            type(one) is str for one in classes
        ):
            shape = (height, width, channel)
            return Header(name, tuple(classes), count, shape, made_from, sha256)
    raise ValueError(f"{path} has a damaged header: pack it again, see {_PACK}")


def _check_room(file: BinaryIO, header: Header) -> None:
    needed = len(header.line) + header.pixel_bytes + 4 * header.count
    folder = Path(file.name).parent
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB free, {header.name} needs "
            f"{needed / 1e9:.1f} GB"
        )
