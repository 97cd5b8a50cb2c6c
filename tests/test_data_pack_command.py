import gzip
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from mcmeqx.data import Images, packed
from mcmeqx.data.pack import main


def write_cifar(folder):
    data = np.arange(2 * 3072, dtype=np.uint16).astype(np.uint8).reshape(2, 3072)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        fields = {"data": data, "labels": [3, 9]}
        (folder / name).write_bytes(pickle.dumps(fields))
    names = {"label_names": list("abcdefghij")}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


def write_imagenet(folder):
    for name in (*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"):
        data = np.zeros((2, 3 * 16 * 16), np.uint8)
        np.savez(folder / f"{name}.npz", data=data, labels=np.array([1, 1000]))


def write_fashion(folder):
    images = struct.pack(">4i", 2051, 2, 28, 28) + bytes(2 * 784)
    labels = struct.pack(">2i", 2049, 2) + bytes([3, 9])
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(labels)


def write_pictures(folder):
    for name in "ab":
        (folder / name).mkdir()
        Image.new("RGB", (10, 30)).save(folder / name / "1.png")


GREY = (1, 32, 32)
COMMANDS = [
    (write_cifar, ["cifar10"], [], (3, 32, 32), [3, 9] * 5),
    (write_cifar, ["cifar10"], ["--split", "test"], (3, 32, 32), [3, 9]),
    (write_imagenet, ["imagenet"], ["--side", "16"], (3, 16, 16), [0, 999] * 10),
    (
        write_imagenet,
        ["imagenet", "--side=16"],
        ["--split=val"],
        (3, 16, 16),
        [0, 999],
    ),
    (write_fashion, ["fashion-mnist", "--folder"], ["--split=test"], GREY, [3, 9]),
    (write_pictures, ["pictures"], ["--side", "8"], (3, 8, 8), [0, 1]),
]


@pytest.mark.parametrize(("write", "before", "after", "shape", "labels"), COMMANDS)
def test_each_kind_is_packed_and_checked(
    tmp_path, capsys, write, before, after, shape, labels
):
    folder, file = tmp_path / "source", tmp_path / "out" / "set.images"
    folder.mkdir()
    write(folder)
    main([*before, str(folder), str(file), *after])
    said = capsys.readouterr().out
    assert f"{len(labels)} images of shape {shape}" in said
    images = packed(file)
    assert (images.shape, images.labels.tolist()) == (shape, labels)
    main(["check", str(file)])
    assert "set.images" in capsys.readouterr().out
    assert list(file.parent.iterdir()) == [file]


def test_openmoji_needs_no_source(tmp_path, monkeypatch):
    pixels = np.full((1, 64, 64, 3), 7, np.uint8)
    images = Images(pixels, np.zeros(1, np.int32), ("a",), "openmoji64")
    monkeypatch.setattr("mcmeqx.data.pack.openmoji", lambda: images)
    main(["openmoji", str(tmp_path / "set.images")])
    np.testing.assert_array_equal(packed(tmp_path / "set.images").pixels, pixels)


def failure(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()[-1]


def test_errors_are_one_line(tmp_path, capsys):
    folder, file = tmp_path / "source", tmp_path / "set.images"
    folder.mkdir()
    write_pictures(folder)
    assert "not square: give a side" in failure(capsys, "pictures", folder, file)
    assert "lacks batches.meta" in failure(capsys, "cifar10", folder, file)
    assert "lacks val_data" in failure(
        capsys, "imagenet", folder, file, "--split", "val"
    )
    assert "holds neither" in failure(capsys, "fashion-mnist", file, "--folder", folder)
    assert "iconify-json-noto" in failure(capsys, "emoji64", folder, file)
    assert "absent" in failure(capsys, "pictures", tmp_path / "absent", file)
    assert "--side" in failure(capsys, "imagenet", folder, file, "--side", "65")
    assert "invalid choice" in failure(capsys, "mnist", folder, file)
    assert "no file of packed" in failure(capsys, "check", folder / "a" / "1.png")
    assert "absent" in failure(capsys, "check", tmp_path / "absent")
    assert not file.exists()


def test_an_existing_file_is_refused_before_the_source_is_read(tmp_path, capsys):
    file = tmp_path / "set.images"
    file.write_text("mine")
    said = failure(capsys, "pictures", tmp_path / "absent", file)
    assert said == f"error: {file} exists: delete it, or give another name"
    assert file.read_text() == "mine"


def test_the_help_names_every_kind(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    kinds = ("imagenet", "cifar10", "fashion-mnist", "pictures", "emoji64", "openmoji")
    assert all(kind in said for kind in (*kinds, "check"))
