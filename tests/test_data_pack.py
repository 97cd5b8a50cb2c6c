import hashlib
import json

import numpy as np
import pytest

from mcmeqx.data import AbstractSource, Images, check_packed, packed, save_packed
from mcmeqx.data import _pack as pack_module


def random_images(n: int = 7) -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 4, 6, 3)).astype(np.uint8)
    labels = rng.integers(0, 3, n).astype(np.int32)
    return Images(pixels, labels, ("a", "ö", "c d"), "random")


class Broken(AbstractSource):
    """Images of which the fourth is what the test wants it to be."""

    def __init__(self, fourth) -> None:
        self.name, self.classes = "broken", ("a",)
        self._fourth = fourth

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, 2, 2

    def __len__(self) -> int:
        return 6

    def raw(self, i: int) -> tuple[np.ndarray, int]:
        return self._fourth() if i == 3 else (np.zeros((2, 2, 3), np.uint8), 0)


def raises():
    raise KeyboardInterrupt


def test_a_packed_set_is_the_same_set(tmp_path):
    images, path = random_images(), tmp_path / "deep" / "set.images"
    save_packed(images, path, made_from="a test")
    check_packed(path)
    back = packed(path)
    np.testing.assert_array_equal(back.pixels, images.pixels)
    np.testing.assert_array_equal(back.labels, images.labels)
    assert (back.classes, back.name, back.shape) == (
        images.classes,
        "random",
        (3, 4, 6),
    )
    for a, b in zip(back.take([6, 0, 6]), images.take([6, 0, 6]), strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b)
    assert list(path.parent.iterdir()) == [path]


def test_the_file_is_laid_out_as_documented(tmp_path):
    images, path = random_images(), tmp_path / "set.images"
    save_packed(images, path, made_from="a test")
    data = path.read_bytes()
    line = data[: data.index(b"\n") + 1]
    rest = images.pixels.tobytes() + images.labels.astype("<i4").tobytes()
    assert len(line) % 4096 == 0
    assert data[len(line) :] == rest
    assert json.loads(line) == {
        "format": "mcmeqx images",
        "version": 1,
        "name": "random",
        "classes": ["a", "ö", "c d"],
        "count": 7,
        "shape": [4, 6, 3],
        "made_from": "a test",
        "sha256": hashlib.sha256(rest).hexdigest(),
    }


def test_a_header_longer_than_a_page_takes_more_pages(tmp_path):
    classes = tuple(f"a class with a long name, number {i}" for i in range(1000))
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    images = Images(pixels, np.array([999], np.int32), classes, "many")
    save_packed(images, tmp_path / "set.images")
    back = packed(tmp_path / "set.images")
    assert (back.classes, back.labels[0]) == (classes, 999)
    np.testing.assert_array_equal(back.pixels, pixels)


def test_a_packed_set_is_mapped_and_cannot_be_written_to(tmp_path):
    path = tmp_path / "set.images"
    save_packed(random_images(), path)
    back = packed(path)
    base = back.pixels
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        back.pixels[0] = 0


BAD_FOURTHS = [
    (raises, KeyboardInterrupt, None),
    (lambda: (np.zeros((2, 3, 3), np.uint8), 0), ValueError, r"broken\[3\] is uint8"),
    (lambda: (np.zeros((2, 2, 3), np.int64), 0), ValueError, "is int64"),
    (lambda: (np.zeros((2, 2, 3), np.uint8), 1), ValueError, r"label 1, .* \[0, 1\)"),
    (lambda: (np.zeros((2, 2, 3), np.uint8), -1), ValueError, "label -1"),
]


@pytest.mark.parametrize(("fourth", "error", "message"), BAD_FOURTHS)
def test_an_error_midway_leaves_nothing(tmp_path, fourth, error, message):
    with pytest.raises(error, match=message):
        save_packed(Broken(fourth), tmp_path / "set.images")
    assert list(tmp_path.iterdir()) == []


def test_the_file_has_its_name_only_once_it_is_complete(tmp_path, monkeypatch):
    path, renamed = tmp_path / "set.images", []
    monkeypatch.setattr("os.replace", lambda *paths: renamed.append(paths))
    save_packed(random_images(), path)
    [(unfinished, target)] = renamed
    assert (unfinished.parent, target) == (tmp_path, path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept(tmp_path):
    path = tmp_path / "set.images"
    path.write_text("mine")
    # Before hours of reading, not after.
    with pytest.raises(FileExistsError, match=r"set\.images exists: delete it"):
        save_packed(Broken(lambda: pytest.fail("read")), path)
    path.unlink()

    def appears():
        path.write_text("another's")
        return np.zeros((2, 2, 3), np.uint8), 0

    with pytest.raises(FileExistsError, match="exists"):
        save_packed(Broken(appears), path)
    assert path.read_text() == "another's"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_does_no_harm(tmp_path, monkeypatch):
    path = tmp_path / "set.images"
    # As a kill does: nothing after the fourth image runs, not even the cleaning up.
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            save_packed(Broken(raises), path)
    [leftover] = tmp_path.iterdir()
    save_packed(random_images(), path)
    check_packed(path)
    assert set(tmp_path.iterdir()) == {leftover, path}
    # Renamed by hand, it is still no packed file, for want of its last bytes.
    leftover.rename(tmp_path / "other.images")
    with pytest.raises(ValueError, match="truncated"):
        packed(tmp_path / "other.images")


def changed_line(**fields):
    def change(data: bytes) -> bytes:
        end = data.index(b"\n")
        line = json.dumps({**json.loads(data[:end]), **fields}).encode()
        return line.ljust(end) + data[end:]

    return change


DAMAGES = {
    "truncated": (lambda data: data[:-1], "bytes, expected .* truncated"),
    "longer": (lambda data: data + b"\0", "truncated or damaged"),
    "only a header": (lambda data: data[:4096], "truncated"),
    "half a header": (lambda data: data[:2000], "no file of packed images"),
    "empty": (lambda data: b"", "no file of packed images"),
    "foreign": (lambda data: b"PK" + data, "no file of packed images"),
    "json": (lambda data: b"[1]\n", "no file of packed images"),
    "other": (changed_line(format="other"), "no file of packed images"),
    "version": (changed_line(version=2), "version 2 .* reads 1: pack it again"),
    "count": (changed_line(count=-7), "damaged header"),
    "many": (changed_line(count=10**15), "truncated"),
    "shape": (changed_line(shape=[4, 6]), "damaged header"),
    "classes": (changed_line(classes="abc"), "damaged header"),
    "fewer classes": (changed_line(classes=["a"]), r"outside \[0, 1\)"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_refused(tmp_path, damage, message):
    path = tmp_path / "set.images"
    save_packed(random_images(), path)
    path.write_bytes(damage(path.read_bytes()))
    for read in (packed, check_packed):
        with pytest.raises(ValueError, match=message):
            read(path)


@pytest.mark.parametrize("at", [4096, 4500, -1])
def test_the_hash_finds_a_changed_byte(tmp_path, at):
    path = tmp_path / "set.images"
    save_packed(random_images(), path)
    data = bytearray(path.read_bytes())
    # -1 stands for the low byte of the last label, which stays in range.
    at = at if at > 0 else len(data) - 4
    data[at] = (data[at] + 1) % 3
    path.write_bytes(data)
    packed(path)
    with pytest.raises(ValueError, match="damaged: its sha256 is"):
        check_packed(path)


def test_no_set_is_packed_without_room_or_images(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="random holds no images"):
        save_packed(random_images(0), tmp_path / "set.images")
    usage = type("Usage", (), {"free": 4095})()
    monkeypatch.setattr(pack_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="GB free, random needs"):
        save_packed(random_images(), tmp_path / "set.images")
    assert list(tmp_path.iterdir()) == []


class Named(AbstractSource):
    name, shape = "named", (3, 2, 2)

    def __init__(self, *classes):
        self.classes = classes

    def __len__(self):
        return 1

    def raw(self, i):
        return np.zeros((2, 2, 3), np.uint8), 0


@pytest.mark.parametrize("classes", [("a", "a"), (0, 1)])
def test_classes_that_could_not_be_read_back_are_not_written(tmp_path, classes):
    path = tmp_path / "new.images"
    with pytest.raises(ValueError, match=r"named has classes .* own text"):
        save_packed(Named(*classes), path)
    assert not list(tmp_path.iterdir())
    save_packed(Named(*np.array(["a", "b"])), path)
    assert packed(path).classes == ("a", "b")


def test_a_label_that_is_none_names_the_damaged_file(tmp_path):
    path = tmp_path / "new.images"
    save_packed(random_images(), path)
    data = bytearray(path.read_bytes())
    data[-1] = 64
    path.write_bytes(data)
    for read in (packed, check_packed):
        with pytest.raises(ValueError, match=r"new\.images is damaged \(labels\[6\]"):
            read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        packed(tmp_path / "absent.images")
