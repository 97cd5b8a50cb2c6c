"""Batch files of downsampled ImageNet and CIFAR-10, in each form they come in."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mcmeqx.data import ImageNetBatches, cifar10, save_packed

NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def rows(n: int, side: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3 * side * side)).astype(np.uint8)


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """{'data': array, 'labels': list} as Python 2 and NumPy 1 wrote it, protocol 2."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + integer(0)
        + b"\x85"
        + text(b"b")
        + b"\x87R("
        + integer(1)
        + b"".join(map(integer, data.shape))
        + b"\x86cnumpy\ndtype\n"
        + text(b"u1")
        + integer(0)
        + integer(1)
        + b"\x87R("
        + integer(3)
        + text(b"|")
        + b"NNN"
        + integer(-1) * 2
        + integer(0)
        + b"tb\x89"
        + text(data.tobytes())
        + b"tb"
    )
    items = text(b"data") + array + text(b"labels")
    items += b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + items + b"u."


def as_npz(data: np.ndarray, labels: list[int]) -> bytes:
    file = io.BytesIO()
    mean = data.mean(axis=0)
    np.savez(file, data=data, labels=np.array(labels), mean=mean)
    return file.getvalue()


def as_pickle(protocol: int, kind=list):
    def write(data: np.ndarray, labels: list[int]) -> bytes:
        mean = data.mean(axis=0)
        fields = {"data": data, "labels": kind(labels), "mean": mean}
        return pickle.dumps(fields, protocol)

    return write


def numpy1(data: np.ndarray, labels: list[int]) -> bytes:
    """NumPy 2's pickle with the names that NumPy 1 gave its parts."""
    written = as_pickle(2, np.array)(data, labels)
    assert b"numpy._core" in written
    return written.replace(b"numpy._core", b"numpy.core")


FORMS = {
    "npz": as_npz,
    "python 2": python2_pickle,
    "numpy 1": numpy1,
    "protocol 0": as_pickle(0),
    "protocol 2": as_pickle(2),
    "protocol 4": as_pickle(4, np.array),
    "protocol 5": as_pickle(5, np.array),
    "big-endian": as_pickle(2, lambda labels: np.array(labels, ">i4")),
    "numpy scalars": as_pickle(4, lambda labels: list(np.array(labels, np.int16))),
    "fortran": lambda data, labels: as_pickle(4)(np.asfortranarray(data), labels),
}


def write_imagenet(folder: Path, side: int = 8, form=as_npz, per_file: int = 3):
    """The ten training batches and the validation one, and what stands in them."""
    suffix = ".npz" if form is as_npz else ""
    data = rows(10 * per_file, side)
    labels = np.random.default_rng(1).integers(1, 1001, len(data))
    labels[:2] = 1, 1000
    for i in range(10):
        part = slice(i * per_file, (i + 1) * per_file)
        file = folder / f"train_data_batch_{i + 1}{suffix}"
        file.write_bytes(form(data[part], labels[part].tolist()))
    (folder / f"val_data{suffix}").write_bytes(form(rows(4, side, 2), [4, 3, 2, 1]))
    return data, labels


def pixel(row: np.ndarray, side: int, channel: int, y: int, x: int) -> int:
    """By the archives' README: red plane, green plane, blue plane, each row by row."""
    return int(row[channel * side * side + y * side + x])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_imagenet_is_read_in_each_form(tmp_path, form):
    data, labels = write_imagenet(tmp_path, form=form)
    source = ImageNetBatches(tmp_path, side=8)
    assert (len(source), source.shape, len(source.classes)) == (30, (3, 8, 8), 1000)
    for i in (0, 1, 29, 4, 2, 3, 15):
        pixels, label = source.raw(i)
        assert label == labels[i] - 1
        assert source.classes[label] == str(labels[i])
        assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
        for y, x, channel in ((0, 0, 0), (0, 7, 1), (7, 0, 2), (3, 5, 0)):
            assert pixels[y, x, channel] == pixel(data[i], 8, channel, y, x)
    x, label, _ = source[-1]
    assert (x.shape, x.dtype, label) == ((3, 8, 8), np.float32, labels[-1] - 1)
    assert x[2, 7, 0] == pytest.approx(pixel(data[-1], 8, 2, 7, 0) / 127.5 - 1)
    val = ImageNetBatches(tmp_path, side=8, split="val")
    assert [val.raw(i)[1] for i in range(len(val))] == [3, 2, 1, 0]


def test_imagenet_holds_one_file_at_a_time(tmp_path, monkeypatch):
    write_imagenet(tmp_path)
    source = ImageNetBatches(tmp_path, side=8)
    read, real = [], ImageNetBatches._pixels_of

    def pixels_of(self, path, count):
        read.append(path.name)
        assert len(self._pixels) == 0, "the file before is still held"
        return real(self, path, count)

    monkeypatch.setattr(ImageNetBatches, "_pixels_of", pixels_of)
    save_packed(source, tmp_path / "set.images")
    assert read == [f"train_data_batch_{i}.npz" for i in range(1, 11)]


def test_imagenet_names_what_is_missing(tmp_path):
    write_imagenet(tmp_path)
    for i in (2, 9):
        (tmp_path / f"train_data_batch_{i}.npz").unlink()
    missing = "lacks train_data_batch_2, train_data_batch_9 of"
    with pytest.raises(FileNotFoundError, match=missing):
        ImageNetBatches(tmp_path, side=8)
    assert len(ImageNetBatches(tmp_path, side=8, split="val")) == 4


def cifar_files(form) -> dict[str, bytes]:
    files = {f"data_batch_{i + 1}": form(rows(2, 32, i), [i, 9 - i]) for i in range(5)}
    files["test_batch"] = form(rows(3, 32, 9), [7, 8, 9])
    meta = {"label_names": list(NAMES), "num_vis": 3072}
    return files | {"batches.meta": pickle.dumps(meta, 2), "readme.html": b"<html>"}


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    inner = folder / "cifar-10-batches-py"
    inner.mkdir()
    for name, data in files.items():
        (inner / name).write_bytes(data)
    return inner


def as_parent(folder: Path, files: dict[str, bytes]) -> Path:
    return as_folder(folder, files).parent


def as_tar(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("place", [as_folder, as_parent, as_tar])
@pytest.mark.parametrize("form", [python2_pickle, as_pickle(4)])
def test_cifar10_is_read_in_each_place(tmp_path, place, form):
    path = place(tmp_path, cifar_files(form))
    before = sorted(tmp_path.rglob("*"))
    train, test = cifar10(path), cifar10(path, split="test")
    assert train.classes == NAMES
    assert (train.shape, len(train), len(test)) == ((3, 32, 32), 10, 3)
    np.testing.assert_array_equal(train.labels, [0, 9, 1, 8, 2, 7, 3, 6, 4, 5])
    np.testing.assert_array_equal(test.labels, [7, 8, 9])
    row = rows(2, 32, 4)[1]
    for y, x, channel in ((0, 31, 0), (31, 0, 1), (5, 6, 2)):
        assert train.pixels[9, y, x, channel] == pixel(row, 32, channel, y, x)
    assert sorted(tmp_path.rglob("*")) == before, "something was unpacked"


@pytest.mark.parametrize("place", [as_folder, as_tar])
def test_cifar10_names_what_is_missing(tmp_path, place):
    files = cifar_files(as_pickle(4))
    del files["data_batch_3"], files["batches.meta"]
    path = place(tmp_path, files)
    with pytest.raises(
        FileNotFoundError, match=r"lacks batches\.meta, data_batch_3 of"
    ):
        cifar10(path)
    with pytest.raises(FileNotFoundError, match="no folder and no file"):
        cifar10(tmp_path / "absent")


def test_cifar10_refuses_other_labels_and_names(tmp_path):
    files = cifar_files(as_pickle(4))
    files["data_batch_2"] = as_pickle(4)(rows(2, 32), [10, 0])
    path = as_folder(tmp_path, files)
    with pytest.raises(
        ValueError, match=r"data_batch_2 in .*labels\[0\] is 10, .* 0 to 9"
    ):
        cifar10(path)
    meta = pickle.dumps({"label_names": ["a"] * 10})
    (path / "batches.meta").write_bytes(meta)
    with pytest.raises(ValueError, match=r"batches\.meta in .* expected ten names"):
        cifar10(path)


def test_a_file_that_changes_while_a_set_is_read_is_named(tmp_path):
    (tmp_path / "val_data.npz").write_bytes(as_npz(rows(3, 8), [1, 2, 3]))
    batches = ImageNetBatches(tmp_path, side=8, split="val")
    (tmp_path / "val_data.npz").write_bytes(as_npz(rows(2, 8), [1, 2]))
    with pytest.raises(ValueError, match=r"val_data\.npz was changed while it was"):
        batches.raw(0)
