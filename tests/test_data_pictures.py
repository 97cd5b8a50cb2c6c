"""Pictures in folders and zips: which, of which class, and how they are decoded."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcmeqx.data import Pictures, npz_images


def solid(colour, mode: str = "RGB", side: int = 4, kind: str = "PNG") -> bytes:
    return encoded(Image.new(mode, (side, side), colour), kind)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "pictures"


def as_zip(tmp_path: Path, files: dict[str, bytes]) -> Path:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


places = pytest.mark.parametrize("place", [as_folder, as_zip])
RED, GREEN, BLUE = solid((255, 0, 0)), solid((0, 255, 0)), solid((0, 0, 255))


def table(labels) -> bytes:
    return json.dumps({"labels": labels}).encode()


def colours(pictures: Pictures) -> list[tuple[str, str]]:
    """The main colour of each picture, and the name of its class."""
    names = ("red", "green", "blue")
    return [
        (names[int(pixels.mean(axis=(0, 1)).argmax())], pictures.classes[label])
        for pixels, label in map(pictures.raw, range(len(pictures)))
    ]


@places
def test_a_folder_is_a_class(tmp_path, place):
    files = {
        "n02/b.png": RED,
        "n01/x.JPEG": solid((0, 0, 250), kind="JPEG"),
        "n02/deep/a.jpg": solid((0, 250, 0), kind="JPEG"),
        "n01/notes.txt": b"no picture",
        "readme.md": b"no picture",
        "__MACOSX/n01/._x.png": b"no picture",
        ".hidden/a.png": b"no picture",
    }
    pictures = Pictures(place(tmp_path, files))
    assert pictures.classes == ("n01", "n02")
    assert colours(pictures) == [("blue", "n01"), ("red", "n02"), ("green", "n02")]
    assert (pictures.name, pictures.shape) == ("pictures", (3, 4, 4))
    x, label, _ = pictures[1]
    assert (x.shape, x.dtype, label) == ((3, 4, 4), np.float32, 1)
    assert x.mean(axis=(1, 2)).tolist() == [1.0, -1.0, -1.0]


@places
def test_edms_table_gives_the_labels(tmp_path, place):
    files = {
        "00000/img00000000.png": RED,
        "00000/img00000001.png": GREEN,
        "00001/img00000002.png": BLUE,
    }
    rows = [[name, label] for name, label in zip(files, (6, 0, 6), strict=True)]
    files["dataset.json"] = table(rows[::-1])
    pictures = Pictures(place(tmp_path, files))
    assert colours(pictures) == [("red", "6"), ("green", "0"), ("blue", "6")]
    assert pictures.classes == tuple("0123456")


@places
def test_without_labels_there_is_one_class(tmp_path, place):
    files = {"b.png": RED, "a.png": BLUE}
    assert colours(Pictures(place(tmp_path, files))) == [
        ("blue", "all"),
        ("red", "all"),
    ]
    files = {"00000/b.png": RED, "00001/a.png": BLUE, "dataset.json": table(None)}
    (tmp_path / "edm").mkdir()
    pictures = Pictures(place(tmp_path / "edm", files))
    assert colours(pictures) == [("red", "all"), ("blue", "all")]


BAD_LABELS = {
    "a missing picture": ([["a.png", 0], ["b.png", 1]], "names b.png, which is not"),
    "a picture left out": ([], "lacks a.png"),
    "negative": ([["a.png", -1]], "label of a.png is -1"),
    "fraction": ([["a.png", 1.0]], "label of a.png is 1.0"),
    "true": ([["a.png", True]], "label of a.png is True"),
    "vector": ([["a.png", [0, 1]]], r"label of a.png is \[0, 1\]"),
    "huge": ([["a.png", 10**9]], "label of a.png is 1000000000"),
    "twice": ([["a.png", 0], ["a.png", 0]], "names a picture twice"),
    "not pairs": (["a.png"], "is not"),
    "text": ("labels", "is not"),
}


@places
@pytest.mark.parametrize(
    ("rows", "message"), BAD_LABELS.values(), ids=BAD_LABELS.keys()
)
def test_labels_that_do_not_fit_are_refused(tmp_path, place, rows, message):
    Pictures(place(tmp_path, {"a.png": RED, "dataset.json": table([["a.png", 3]])}))
    path = place(tmp_path, {"a.png": RED, "dataset.json": table(rows)})
    with pytest.raises(ValueError, match=rf"dataset\.json in .*{message}"):
        Pictures(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 99999])
def test_a_damaged_table_is_refused(tmp_path, content):
    path = as_zip(tmp_path, {"a.png": RED, "dataset.json": content})
    with pytest.raises(ValueError, match=r"dataset\.json in .* is not"):
        Pictures(path)


@places
def test_pictures_in_and_out_of_folders_are_refused(tmp_path, place):
    path = place(tmp_path, {"a/b.png": RED, "c.png": RED})
    with pytest.raises(ValueError, match=r"c\.png lies in no folder"):
        Pictures(path)


@places
def test_the_folder_above_training_and_validation_is_refused(tmp_path, place):
    names = ("train/n01/a.png", "train/n02/b.png", "val/n01/c.png", "val/n02/d.png")
    path = place(tmp_path, dict.fromkeys(names, RED))
    with pytest.raises(ValueError, match=r"train holds no picture but 2 .* as train"):
        Pictures(path)


def test_nothing_to_read_is_refused(tmp_path):
    for path, message in (
        (as_zip(tmp_path, {"a.txt": b""}), "holds no picture"),
        (as_folder(tmp_path, {"a.gif": b""}), "holds no picture"),
        (tmp_path / "absent", "no folder and no file"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            Pictures(path)


def test_each_mode_becomes_rgb_on_white(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    key = {"transparency": (10, 20, 30)}
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 51))
    half.putpixel((0, 0), (10, 20, 30, 255))
    cases = {
        "grey": (solid(77, "L"), (77, 77, 77)),
        "bilevel": (solid(1, "1"), (255, 255, 255)),
        "palette": (encoded(palette), (10, 20, 30)),
        "palette, clear": (encoded(palette, transparency=1), (255, 255, 255)),
        "colour key": (
            encoded(Image.new("RGB", (4, 4), (10, 20, 30)), **key),
            (255, 255, 255),
        ),
        # A fifth of the colour and four fifths of white.
        "half clear": (encoded(half), (255, 204, 204)),
        "grey, clear": (solid((77, 0), "LA"), (255, 255, 255)),
        "cmyk": (solid((255, 0, 0, 0), "CMYK", kind="JPEG"), (0, 255, 255)),
        "jpeg, grey": (solid(77, "L", kind="JPEG"), (77, 77, 77)),
    }
    files = {f"{name}.png": data for name, (data, _) in cases.items()}
    pictures = Pictures(as_zip(tmp_path, files))
    order = [name.removesuffix(".png") for name in sorted(files)]
    for i, name in enumerate(order):
        pixels, _ = pictures.raw(i)
        assert (pixels.shape, pixels.dtype) == ((4, 4, 3), np.uint8)
        assert tuple(pixels[2, 1]) == cases[name][1], name
    assert tuple(pictures.raw(order.index("half clear"))[0][0, 0]) == (
        10,
        20,
        30,
    )


@places
def test_without_a_side_pictures_are_square_and_of_one_size(tmp_path, place):
    oblong = encoded(Image.new("RGB", (4, 5)))
    with pytest.raises(
        ValueError, match=r"a\.png in .* is 4x5, not square: give a sid"
    ):
        Pictures(place(tmp_path, {"a.png": oblong}))
    files = {"a.png": RED, "b.png": solid(0, side=5)}
    pictures = Pictures(place(tmp_path, files))
    with pytest.raises(ValueError, match=r"b\.png in .* is 5 pixels .* give a side"):
        pictures.raw(1)
    with pytest.raises(ValueError, match="side is 0"):
        Pictures(tmp_path, side=0)


def test_images_in_an_npz_are_read_and_arrays_of_another_kind_refused(tmp_path):
    path = tmp_path / "samples.npz"
    expected = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    np.savez(path, expected, labels=np.zeros(2))
    np.testing.assert_array_equal(npz_images(path), expected)
    for wrong in (expected[0], expected.astype(np.float32), expected[..., :2]):
        np.savez(path, wrong)
        with pytest.raises(ValueError, match="expected uint8"):
            npz_images(path)
    np.savez(path, images=expected)
    with pytest.raises(ValueError, match=r"expected arr_0\.npy"):
        npz_images(path)


def test_a_linked_class_is_a_class_and_a_link_deeper_down_is_not_followed(tmp_path):
    path = as_folder(tmp_path, {"a/1.png": solid("red")})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes(solid("blue"))
    (path / "b").symlink_to(tmp_path / "elsewhere")
    (path / "a" / "loop").symlink_to(path)
    pictures = Pictures(path)
    assert pictures.classes == ("a", "b")
    assert [label for _, label in map(pictures.raw, range(len(pictures)))] == [0, 1]
