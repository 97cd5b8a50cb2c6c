"""The user's own ImageNet, packed once into the cache and mapped from then on."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

from mcmeqx._whole import written_whole
from mcmeqx.data._cache import cache_folder
from mcmeqx.data._imagenet_batches import STEMS, WANTED, ImageNetBatches, find_batches
from mcmeqx.data._images import Images
from mcmeqx.data._pack import packed, read_header, write_packed
from mcmeqx.data._picture_labels import is_picture, tells
from mcmeqx.data._picture_store import Folder, Zip
from mcmeqx.data._pictures import Pictures
from mcmeqx.data._source import AbstractSource

_CLASSES = 1000
_LOOKED_FOR = (
    f"looked for {WANTED}, one zip of pictures, or pictures with dataset.json or in a "
    "folder per class. Run without --data-dir to train on the demo's own images."
)


def imagenet64(path: Path, *, cache: Path | None = None) -> Images:
    """`imagenet` at 64x64, the paper's size."""
    return imagenet(path, 64, cache=cache)


def imagenet(path: Path, side: int, *, cache: Path | None = None) -> Images:
    """ImageNet's training set at side x side, from whichever form of it `path` is.

    A packed file is mapped. A zip of pictures, or a folder that holds the official
    archives `train_data_batch_1` to `_10`, one zip, or pictures with `dataset.json` or
    in a folder per class, is packed first, with a bar; pictures of another size are
    shrunk or enlarged to it and cropped, as ADM does. `cache` is the folder to keep
    that in, by default the user's cache folder: 16 GB at 64x64. Where a name, size or
    time of the source's files has changed another is made beside it: remove the former.

    Raises `FileNotFoundError` where `path` is none of these; `ValueError` for a packed
    file of another size, for pictures beside a zip, without classes or of more than
    1000, and for what is damaged; `OSError` where the cache cannot be written.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() != ".zip":
        images = packed(path)
        _check_classes(images, path)
    else:
        stamp, read = _find(path, side)
        digest = hashlib.sha256(stamp.encode()).hexdigest()
        key = f"imagenet{side} of files {digest}"
        folder = cache_folder() if cache is None else Path(cache)
        images = _packed_once(
            folder / f"imagenet{side}-{digest[:16]}.images", key, read
        )
    if images.shape != (3, side, side):
        raise ValueError(f"{path} holds images {images.shape}, not {(3, side, side)}")
    return images


def _find(path: Path, side: int) -> tuple[str, Callable[[], AbstractSource]]:
    """A text that changes with the files in `path`, and how to read them."""
    if any(_is_batch(path / name) for names in STEMS.values() for name in names):
        files = find_batches(path, "train")
        stats = [(file.name, file.stat()) for file in files]
        stamp = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
        return "\n".join(stamp), lambda: ImageNetBatches(path, side=side)
    zips = sorted(path.glob("*.[zZ][iI][pP]"))
    names = ", ".join(file.name for file in zips)
    if len(zips) > 1:
        raise ValueError(f"{path} holds {names}: give one of them")
    if not path.exists():
        raise FileNotFoundError(f"{path} is no folder and no file, {_LOOKED_FOR}")
    at, store = path, Folder(path) if path.is_dir() else Zip(path)
    pictured = any(map(is_picture, store.names))
    if zips and pictured:
        raise ValueError(f"{path} holds pictures, and {names}: move one of them away")
    if zips:
        at, store = zips[0], Zip(zips[0])
        pictured = any(map(is_picture, store.names))
    if not pictured:
        raise FileNotFoundError(f"{path} holds no images: mcmeqx {_LOOKED_FOR}")

    def read() -> AbstractSource:
        pictures = Pictures(at, side=side)
        _check_classes(pictures, at)
        return pictures

    return store.stamp(filter(tells, store.names)), read


def _is_batch(path: Path) -> bool:
    return path.is_file() or path.with_name(f"{path.name}.npz").is_file()


def _check_classes(source: AbstractSource, path: Path) -> None:
    if not 1 < len(source.classes) <= _CLASSES:
        raise ValueError(
            f"{path} has {len(source.classes)} classes, expected 2 to {_CLASSES}: "
            "label pictures by dataset.json or a folder per class"
        )


def _packed_once(path: Path, key: str, read: Callable[[], AbstractSource]) -> Images:
    if path.exists():
        try:
            images = packed(path)
            if read_header(path)[0].made_from == key:
                return images
        except ValueError as error:
            text = f"{error}; it is made anew"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
    source = read()
    # Another process may have made it meanwhile: then the same bytes replace it.
    with written_whole(path) as file:
        write_packed(source, file, key)
    return packed(path)
