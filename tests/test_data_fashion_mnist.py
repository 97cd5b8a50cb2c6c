import gzip
import struct

import numpy as np
import pytest

from mcmeqx.data import fashion_mnist

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)


def images(pixels: np.ndarray = PIXELS) -> bytes:
    """By the data set's page: magic 2051, count, rows, columns, big-endian; bytes."""
    return struct.pack(">4i", 2051, *pixels.shape) + pixels.tobytes()


def labels(*values: int) -> bytes:
    return struct.pack(">2i", 2049, len(values)) + bytes(values)


def write(folder, split="train", suffix="", pack=bytes, of_images=None, of_labels=None):
    contents = (of_images or images(), of_labels or labels(9, 0, 3))
    for name, content in zip(NAMES[split], contents, strict=True):
        (folder / f"{name}{suffix}").write_bytes(pack(content))


@pytest.mark.parametrize("split", NAMES)
@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress)])
def test_fashion_mnist_is_read_and_padded(tmp_path, split, suffix, pack):
    # The names on the data set's page, github.com/zalandoresearch/fashion-mnist.
    names = (
        "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle_boot"
    )
    write(tmp_path, split, suffix, pack)
    found = fashion_mnist(tmp_path, split=split)
    assert (found.shape, len(found)) == ((1, 32, 32), 3)
    np.testing.assert_array_equal(found.pixels[:, 2:30, 2:30, 0], PIXELS)
    assert found.pixels.sum() == PIXELS.sum(), "the margin is not black"
    assert found.labels.tolist() == [9, 0, 3]
    assert found.classes == tuple(name.replace("_", " ") for name in names.split())
    other = "train" if split == "test" else "test"
    remedy = "apt-get install dataset-fashion-mnist"
    with pytest.raises(FileNotFoundError, match=f"{NAMES[other][0]}.gz.*{remedy}"):
        fashion_mnist(tmp_path, split=other)


def header(*numbers: int) -> bytes:
    return struct.pack(">4i", *numbers)


BAD_IMAGES = {
    "truncated": (images()[:-1], "shorter than its header says"),
    "longer": (images() + b"\0", "longer than its header says"),
    "only a header": (images()[:16], "shorter"),
    "half a header": (images()[:15], "starts with 2051 and axes"),
    "labels": (labels(*range(9)), "starts with 2049"),
    "little-endian": (images()[3::-1] + images()[4:], r"starts with \d+ .* 2051"),
    "32x32": (images(np.zeros((3, 32, 32), np.uint8)), r"\(3, 32, 32\), expected"),
    "none": (header(2051, 0, 28, 28), "0 rows, expected 1 to 100000"),
    "negative": (header(2051, -1, 28, 28), "-1 rows"),
    "too many": (header(2051, 10**6, 28, 28), "1000000 rows"),
    "two of three": (images(PIXELS[:2]), "2 images, but 3 labels"),
}


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress)])
@pytest.mark.parametrize(
    ("content", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys()
)
def test_bad_images_are_refused(tmp_path, content, message, suffix, pack):
    write(tmp_path, suffix=suffix, pack=pack, of_images=content)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{message}"):
        fashion_mnist(tmp_path)


def test_a_label_without_a_class_is_refused(tmp_path):
    write(tmp_path, of_labels=labels(0, 10, 1))
    with pytest.raises(ValueError, match="a label is 10, expected 0 to 9"):
        fashion_mnist(tmp_path)
    with pytest.raises((TypeError, ValueError), match="valid"):
        fashion_mnist(tmp_path, split="valid")


@pytest.mark.parametrize("keep", [0, 5, 400, -1])
def test_a_truncated_gz_is_refused(tmp_path, keep):
    write(tmp_path, suffix=".gz", pack=gzip.compress)
    path = tmp_path / f"{NAMES['train'][0]}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"images-idx3-ubyte\.gz "):
        fashion_mnist(tmp_path)


def test_a_gz_bomb_is_read_no_further_than_its_header_says(tmp_path, monkeypatch):
    bomb = gzip.compress(images() + bytes(2**26), compresslevel=1)
    write(tmp_path, suffix=".gz", pack=gzip.compress)
    (tmp_path / f"{NAMES['train'][0]}.gz").write_bytes(bomb)
    asked, real = [], gzip.GzipFile.read

    def read(self, size=-1):
        asked.append(size)
        return real(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", read)
    with pytest.raises(ValueError, match="longer than its header says"):
        fashion_mnist(tmp_path)
    assert min(asked) > 0
    assert max(asked) == 3 * 28 * 28 + 1


def test_the_folder_of_debians_package_is_the_default(monkeypatch):
    asked = []
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: asked.append(path))
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mn"):
        fashion_mnist()
    assert str(asked[0].parent) == "/usr/share/datasets/fashion-mnist"
