"""Batch files that are damaged, mislabelled or made to do harm."""

import io
import os
import pickle
import tarfile
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest

from mcmeqx.data import ImageNetBatches, cifar10
from mcmeqx.data._pickles import unpickle

GOOD = np.arange(2 * 192, dtype=np.uint16).astype(np.uint8).reshape(2, 192)


@contextmanager
def little_memory():
    """Fails where more than two megabytes were held at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **{"data": GOOD, "labels": np.array([1, 2]), **arrays})
    return file.getvalue()


def pickled(**fields) -> bytes:
    return pickle.dumps({"data": GOOD, "labels": [1, 2], **fields})


def without(name: str) -> bytes:
    fields = {"data": GOOD, "labels": [1, 2]}
    del fields[name]
    return pickle.dumps(fields)


def read_val(tmp_path, content: bytes, suffix: str = "") -> ImageNetBatches:
    (tmp_path / f"val_data{suffix}").write_bytes(content)
    source = ImageNetBatches(tmp_path, side=8, split="val")
    source.raw(0)
    return source


REFUSED = {
    "npz label 0": (npz(labels=np.array([1, 0])), r"labels\[1\] is 0, .* 1 to 1000"),
    "npz label 1001": (npz(labels=np.array([1001, 1])), r"labels\[0\] is 1001"),
    "npz float labels": (npz(labels=np.ones(2)), "labels is float64"),
    "npz too few labels": (npz(labels=np.ones(1, int)), r"\(1,\), .* \(2,\)"),
    "npz objects": (npz(labels=np.array([1, "a"], object)), "labels is of objects"),
    "npz side": (npz(data=np.zeros((2, 3072), np.uint8)), r"\(2, 3072\), .*\(n, 192\)"),
    "npz dtype": (npz(data=np.zeros((2, 192))), "data is float64"),
    "npz images": (npz(data=GOOD.reshape(2, 3, 8, 8)), r"\(2, 3, 8, 8\)"),
    "npz columns": (npz(data=np.asfortranarray(GOOD)), "Fortran"),
    "npz no rows": (npz(data=GOOD[:0]), "data has 0 rows"),
    "npz truncated": (npz()[:-30], "no npz file, or a damaged one"),
    "npz cut": (npz()[:100], "no npz file, or a damaged one"),
    "pickle label 0": (pickled(labels=[1, 0]), r"labels\[1\] is 0, .* 1 to 1000"),
    "pickle label 1001": (pickled(labels=np.array([1001, 1])), "is 1001"),
    "pickle label -1": (pickled(labels=[-1, 1]), r"labels\[0\] is -1"),
    "pickle float labels": (pickled(labels=[1.0, 2.0]), "not all integers"),
    "pickle true labels": (pickled(labels=[True, 2]), "not all integers"),
    "pickle huge label": (pickled(labels=[2**70, 2]), "not all integers"),
    "pickle few labels": (pickled(labels=[1]), r"\(1,\) labels for 2 images"),
    "pickle no labels": (without("labels"), "holds data, expected labels"),
    "pickle no data": (without("data"), "holds labels, expected data"),
    "pickle text": (pickled(data="text"), "data is a str"),
    "pickle side": (pickled(data=np.zeros((2, 3072), np.uint8)), "expected uint8"),
    "pickle list": (pickle.dumps([1]), "holds a list, expected a dict"),
    "pickle objects": (pickled(data=np.array([None])), "dtype 'O8' is no number's"),
    "pickle truncated": (pickled()[:-9], "no pickle of arrays, or a damaged"),
    "empty": (b"", "no pickle of arrays, or a damaged"),
    "html": (b"<html>not found</html>", "no pickle of arrays, or a damaged"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_batch_file_is_refused_by_name(tmp_path, content, message):
    read_val(tmp_path, npz())
    (tmp_path / "val_data").unlink()
    read_val(tmp_path, pickled())
    with pytest.raises(ValueError, match=f"val_data.*{message}"):
        read_val(tmp_path, content)
    assert [path.name for path in tmp_path.iterdir()] == ["val_data"]


def test_a_changed_byte_in_an_npz_is_found(tmp_path):
    file = io.BytesIO()
    np.savez(file, data=GOOD, labels=np.array([1, 2]))
    content = bytearray(file.getvalue())
    content[content.index(GOOD.tobytes()) + 50] ^= 1
    with pytest.raises(ValueError, match=r"val_data\.npz is .* damaged .*CRC"):
        read_val(tmp_path, bytes(content), ".npz")


class Calls:
    """Calls `function(*arguments)` where it is unpickled, and sets `state` on that."""

    def __init__(self, function, *arguments, state=None) -> None:
        self.reduced = (function, arguments, *([] if state is None else [state]))

    def __reduce__(self):
        return self.reduced


def test_a_pickle_runs_nothing(tmp_path):
    witness = tmp_path / "witness"
    command = f"touch {witness}"
    attacks = [
        Calls(os.system, command),
        Calls(eval, f"open({str(witness)!r}, 'w')"),
        Calls(os.mkdir, str(witness)),
        Calls(getattr, "a", "upper"),
        Calls(np.load, "x.npy"),
        Calls(np.ndarray, (4,)),
    ]
    for attack in attacks:
        for content in (pickled(extra=attack), pickle.dumps(attack, 0)):
            with pytest.raises(ValueError, match=r"hostile one .*(it names|callable)"):
                read_val(tmp_path, content)
    old = b"cposix\nsystem\n(S'" + command.encode() + b"'\ntR."
    with pytest.raises(ValueError, match=r"it names posix\.system"):
        read_val(tmp_path, old)
    assert [path.name for path in tmp_path.iterdir()] == ["val_data"]
    # The proof that the attack is one: Python's own reader runs it.
    pickle.loads(old)
    assert witness.exists()


RECONSTRUCT = pickle.loads(pickle.dumps(np.zeros(1).__reduce__()[0]))


HOSTILE_STATES = {
    "fields": Calls(
        np.dtype, "u1", False, True, state=(3, "|", None, ("a",), {}, 8, 8, 0)
    ),
    "more than there is": Calls(
        RECONSTRUCT,
        np.ndarray,
        (0,),
        b"b",
        state=(1, (2**40,), np.dtype("u1"), False, b"abc"),
    ),
    "an array of what": Calls(RECONSTRUCT, np.dtype, (2**40,), b"b"),
}


@pytest.mark.parametrize("attack", HOSTILE_STATES.values(), ids=HOSTILE_STATES.keys())
def test_a_pickle_makes_no_array_but_of_its_own_bytes(attack):
    with pytest.raises(ValueError, match="file is no pickle of arrays"):
        unpickle(io.BytesIO(pickle.dumps({"data": attack})), "file")


def test_a_pickle_does_not_choose_the_flags_of_a_dtype():
    # 63 has the flag by which NumPy takes an element's bytes for a pointer.
    state = (3, "|", None, None, None, 8, 8, 63)
    dtype = Calls(np.dtype, "u1", False, True, state=state)
    array = Calls(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (3,), dtype, False, b"abc")
    )
    data = unpickle(io.BytesIO(pickle.dumps({"data": array})), "file")["data"]
    assert (data.tolist(), data.dtype.flags, data.dtype.hasobject) == (
        [97, 98, 99],
        0,
        False,
    )


def test_a_shape_in_a_pickle_allocates_nothing():
    huge = Calls(RECONSTRUCT, np.ndarray, (2**38,), b"b")
    with little_memory():
        fields = unpickle(io.BytesIO(pickle.dumps({"data": huge})), "file")
    assert fields["data"].size == 0


def test_a_number_in_a_pickle_allocates_nothing():
    # An empty dict, kept for later under that number: LONG_BINPUT.
    pickled = b"}r" + (2**26).to_bytes(4, "little") + b"."
    assert pickle.loads(pickled) == {}
    with little_memory():
        assert unpickle(io.BytesIO(pickled), "file") == {}
    # BYTEARRAY8, which says that it is of so many bytes.
    long = b"\x80\x05\x96" + (2**26).to_bytes(8, "little") + b"abc."
    with little_memory(), pytest.raises(ValueError, match="file is no pickle"):
        unpickle(io.BytesIO(long), "file")
    assert unpickle(io.BytesIO(pickle.dumps({"a": bytearray(b"abc")}, 5)), "file")


def test_nested_labels_do_not_multiply(tmp_path):
    labels: list = [1, 2]
    for _ in range(60):
        labels = [labels, labels]
    with pytest.raises(ValueError, match="labels are not all integers"):
        read_val(tmp_path, pickled(labels=labels))


def npz_with_header(shape: str, size: int, extra: int = 0) -> bytes:
    """An npz whose data says it has `shape`, and unpacks to `size` zeros."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"
    start = header.encode().ljust(117) + b"\n"
    labels = io.BytesIO()
    np.save(labels, np.array([1, 2]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("data.npy", b"\x93NUMPY\x01\x00\x76\x00" + start + bytes(size))
        archive.writestr("labels.npy", labels.getvalue())
    return file.getvalue()


def test_an_npz_bomb_is_not_unpacked(tmp_path):
    assert len(read_val(tmp_path, npz_with_header("(2, 192)", 384))) == 2
    size = 2**26
    bombs = {
        "(2, 192)": "not as long as its header",
        f"({size // 192}, 192)": "rows, not 1 to 200000",
        f"(2, {size // 2})": "expected uint8",
        "(-1, 192)": r"data has shape \(-1, 192\)",
    }
    for shape, message in bombs.items():
        content = npz_with_header(shape, size)
        assert len(content) < size / 100
        with little_memory(), pytest.raises(ValueError, match=message):
            read_val(tmp_path, content)


def test_a_tar_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    info.size = 2**27
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    with (
        little_memory(),
        pytest.raises(ValueError, match=r"data_batch_1 in .* has 134217728 bytes"),
    ):
        cifar10(path)


@pytest.mark.parametrize("keep", [0, 20, 3000, -9])
def test_a_truncated_tar_is_refused(tmp_path, keep):
    path = tmp_path / "cifar-10-python.tar.gz"
    data = np.random.default_rng(0).bytes(5000)
    info = tarfile.TarInfo("cifar-10-batches-py/batches.meta")
    info.size = len(data)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(info, io.BytesIO(data))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"tar\.gz is no tar\.gz file, or a damaged"):
        cifar10(path)
