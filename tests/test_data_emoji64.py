import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from mcmeqx.data import Images, emoji64
from mcmeqx.data import _emoji64 as emoji64_module
from mcmeqx.data._groups import GROUPS

COLOURS = {
    "grinning": ("1f600", "Smileys & Emotion", (250, 10, 10)),
    "keycap": ("0030-20e3", "Symbols", (10, 250, 10)),
    "flag": ("1f1eb-1f1f7", "Flags", (10, 10, 250)),
    "dog": ("1f415", "Animals & Nature", (10, 120, 130)),
    "pizza": ("1f355", "Food & Drink", (120, 10, 130)),
    "soccer": ("26bd", "Activities", (120, 130, 10)),
    "rocket": ("1f680", "Travel & Places", (60, 70, 80)),
    "hand": ("270b", "People & Body", (80, 70, 60)),
    "bulb": ("1f4a1", "Objects", (200, 100, 50)),
    "leaf": ("1f342", "Animals & Nature", (200, 10, 50)),
    "panda": ("1f43c", "Animals & Nature", (20, 100, 150)),
    "heart": ("2764", "Smileys & Emotion", (200, 200, 5)),
}
EXTRA_CHARS = {"270b-1f3fb": "hand-light", "1f3fb": "tone", "2117": "letter"}


def square(colour, side: int = 32) -> dict:
    fill = "#{:02x}{:02x}{:02x}".format(*colour)
    return {"body": f'<rect width="{side}" height="{side}" fill="{fill}"/>'}


def write_tarball(folder: Path, vendor: str, icons: dict, chars: dict) -> None:
    files = {"icons": {"width": 32, "height": 32, "icons": icons}, "chars": chars}
    with tarfile.open(folder / f"iconify-json-{vendor}-1.0.0.tgz", "w:gz") as tar:
        for name, value in files.items():
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(f"package/{name}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def npm(tmp_path) -> Path:
    """Two vendors of the same emoji; the second one has names, but no code points."""
    icons = {name: square(colour) for name, (_, _, colour) in COLOURS.items()}
    icons |= {name: square((0, 0, 0)) for name in (*EXTRA_CHARS.values(), "unknown")}
    chars = {code: name for name, (code, _, _) in COLOURS.items()} | EXTRA_CHARS
    # Real tables spell some codes with the variation selector.
    chars["0030-fe0f-20e3"] = chars.pop("0030-20e3")
    write_tarball(tmp_path, "noto", icons, chars)
    write_tarball(tmp_path, "fluent-emoji", dict(reversed(icons.items())), {})
    write_tarball(tmp_path, "fluent-emoji-flat", {}, {})
    return tmp_path


def read(npm: Path, **options) -> Images:
    options = {
        "vendors": ("noto", "fluent-emoji"),
        "cache": npm / "cache.npz",
        **options,
    }
    return emoji64(npm, **options)


def test_emoji64_reads_each_emoji_once_a_vendor(npm):
    images = read(npm)
    assert images.classes == GROUPS
    assert images.pixels.shape == (2 * len(COLOURS), 64, 64, 3)
    group_of = {colour: group for _, group, colour in COLOURS.values()}
    half = len(COLOURS)
    for i, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        assert (pixels == pixels[0, 0]).all()
        assert group_of[tuple(pixels[0, 0].tolist())] == GROUPS[label]
        assert (pixels == images.pixels[(i + half) % (2 * half)]).all()
    assert len({tuple(p[0, 0]) for p in images.pixels}) == half
    assert not list(npm.glob("**/*.json")), "a tarball was unpacked"


def test_emoji64_holds_out_by_code_point(npm):
    train, test = read(npm, split="train"), read(npm, split="test")
    held_out = {
        colour
        for code, _, colour in COLOURS.values()
        if zlib.crc32(code.encode()) % 10 == 0
    }
    seen = [{tuple(p[0, 0].tolist()) for p in part.pixels} for part in (train, test)]
    assert 0 < len(held_out) < len(COLOURS)
    assert seen[1] == held_out
    assert seen[0] == {colour for _, _, colour in COLOURS.values()} - held_out
    assert (len(train) + len(test), len(test)) == (2 * len(COLOURS), 2 * len(held_out))


def test_what_a_vendor_draws_alike_is_not_held_out(npm, monkeypatch):
    held_out = {n for n, c in COLOURS.items() if zlib.crc32(c[0].encode()) % 10 == 0}
    seen = next(name for name in COLOURS if name not in held_out)
    twin, colour = min(held_out), COLOURS[seen][2]
    icons = {name: square(colour) for name, (_, _, colour) in COLOURS.items()}
    icons[twin] = square(colour)
    chars = {code: name for name, (code, _, _) in COLOURS.items()}
    write_tarball(npm, "noto", icons, chars)
    train, test = read(npm, split="train"), read(npm, split="test")
    assert len(train) == 2 * (len(COLOURS) - len(held_out))
    assert len(test) == 2 * len(held_out) - 1
    assert colour not in {tuple(p[0, 0].tolist()) for p in test.pixels}
    assert len(read(npm)) == 2 * len(COLOURS)


def test_emoji64_keeps_shapes_and_offsets(tmp_path):
    icons = {
        "tall": square((9, 9, 9), 64) | {"height": 64},
        "offset": {
            "body": '<rect x="-16" y="8" width="16" height="32" fill="#090909"/>',
            "left": -16,
            "top": 8,
        },
        "half": {"body": '<rect width="16" height="32" fill="#090909"/>'},
    }
    chars = {"1f600": "tall", "1f603": "offset", "1f604": "half"}
    write_tarball(tmp_path, "noto", icons, chars)
    tall, offset, half = read(tmp_path, vendors=("noto",)).pixels
    dark = np.zeros((64, 64), bool)
    dark[:, 16:48] = True
    np.testing.assert_array_equal((tall == 9).all(axis=-1), dark)
    np.testing.assert_array_equal((tall == 255).all(axis=-1), ~dark)
    dark[:] = np.arange(64) < 32
    for pixels in (offset, half):
        np.testing.assert_array_equal((pixels == 9).all(axis=-1), dark)
    np.testing.assert_array_equal((half == 255).all(axis=-1), ~dark)


def test_emoji64_is_rendered_once_for_the_same_tarballs(npm, monkeypatch):
    first, fresh = read(npm), read(npm, cache=npm / "other.npz")
    np.testing.assert_array_equal(first.pixels, fresh.pixels)
    with monkeypatch.context() as patch:
        patch.setattr(emoji64_module, "_render", lambda *_: pytest.fail("rendered"))
        np.testing.assert_array_equal(read(npm).pixels, first.pixels)
    for colour in ([9, 9, 9], [1, 2, 3]):
        write_tarball(npm, "noto", {"leaf": square(colour)}, {"1f342": "leaf"})
        changed = read(npm, vendors=("noto",))
        assert changed.pixels[:, 0, 0].tolist() == [colour]
    with monkeypatch.context() as patch:
        patch.setattr(emoji64_module, "versions", lambda *_: "another renderer")
        patch.setattr(emoji64_module, "_render", lambda *_: pytest.fail("rendered"))
        with pytest.raises(pytest.fail.Exception, match="rendered"):
            read(npm, vendors=("noto",))
    path = npm / "cache.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert (read(npm, vendors=("noto",)).pixels == changed.pixels).all()


def test_emoji64_refuses(npm):
    cases = [
        (
            {"vendors": ("twemoji",)},
            FileNotFoundError,
            "npm pack @iconify-json/twemoji",
        ),
        ({"vendors": ("fluent-emoji",)}, ValueError, "ask for 'noto' too"),
        ({"vendors": ()}, ValueError, "vendors is"),
        ({"vendors": "noto"}, ValueError, "vendors is 'noto'"),
        ({"vendors": ("noto", "noto")}, ValueError, "vendors is"),
        ({"split": "valid"}, (TypeError, ValueError), "valid"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            read(npm, **options)
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        read(npm / "no-such-folder")
    first = npm / "iconify-json-noto-1.0.0.tgz"
    first.with_name("iconify-json-noto-1.1.0.tgz").write_bytes(first.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"noto-1\.0\.0\.tgz, .*noto-1\.1\.0"):
        read(npm)


def test_a_vendors_own_table_goes_before_what_others_call_an_icon(tmp_path):
    # Two vendors draw the code 1f342; the second calls another icon as the first does.
    leaf, autumn, dog = ((10, 0, 0), (0, 10, 0), (0, 0, 10))
    write_tarball(tmp_path, "noto", {"leaf": square(leaf)}, {"1f342": "leaf"})
    icons = {"leaf": square(dog), "autumn": square(autumn)}
    write_tarball(tmp_path, "twemoji", icons, {"1f342": "autumn"})
    images = read(tmp_path, vendors=("noto", "twemoji"))
    assert [tuple(p[0, 0].tolist()) for p in images.pixels] == [leaf, autumn]


def test_the_first_vendor_asked_for_says_what_a_name_means(tmp_path):
    # One name of two emoji: fluent-emoji has no codes, and takes that of the first.
    write_tarball(tmp_path, "noto", {"face": square((1, 1, 1))}, {"1f600": "face"})
    write_tarball(tmp_path, "twemoji", {"face": square((2, 2, 2))}, {"1f415": "face"})
    write_tarball(tmp_path, "fluent-emoji", {"face": square((3, 3, 3))}, {})
    orders = {"Smileys & Emotion": ("noto", "twemoji")}
    orders["Animals & Nature"] = ("twemoji", "noto")
    for group, vendors in orders.items():
        images = read(tmp_path, vendors=(*vendors, "fluent-emoji"))
        assert images.pixels[-1, 0, 0, 0] == 3
        assert images.classes[images.labels[-1]] == group


BAD_TARBALLS = {
    "no body": ({"leaf": {"width": 3}}, {"1f342": "leaf"}, "or a damaged one"),
    "no name": ({"leaf": square((1, 1, 1))}, {"1f342": ["leaf"]}, "or a damaged one"),
    "no object": ({"leaf": "<rect/>"}, {"1f342": "leaf"}, "or a damaged one"),
    "no SVG": ({"leaf": {"body": "<nonsense"}}, {"1f342": "leaf"}, "1f342 by no SVG"),
}


@pytest.mark.parametrize(
    ("icons", "chars", "message"), BAD_TARBALLS.values(), ids=BAD_TARBALLS.keys()
)
def test_emoji64_names_a_tarball_of_other_json(tmp_path, icons, chars, message):
    write_tarball(tmp_path, "noto", icons, chars)
    with pytest.raises(ValueError, match=rf"noto-1\.0\.0\.tgz .*{message}"):
        read(tmp_path, vendors=("noto",))
    assert not (tmp_path / "cache.npz").exists()


@pytest.mark.parametrize("keep", [-1, 200, 0])
def test_emoji64_names_a_damaged_tarball(npm, keep):
    path = npm / "iconify-json-noto-1.0.0.tgz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"iconify-json-noto-1\.0\.0\.tgz is no iconify"
    ):
        read(npm)
