"""The user's own ImageNet: found, packed once, mapped from then on."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from mcmeqx.data import Images, imagenet, imagenet64, save_packed
from mcmeqx.data import _imagenet as imagenet_module


def write_archives(folder, per_file: int = 2) -> np.ndarray:
    """Ten official files in which image i is grey i, and of class i + 1 to them."""
    grey = np.arange(10 * per_file, dtype=np.uint8)
    data = np.repeat(grey[:, None], 3 * 64 * 64, axis=1)
    for i in range(10):
        part = slice(i * per_file, (i + 1) * per_file)
        labels = grey[part].astype(np.int64) + 1
        np.savez(
            folder / f"train_data_batch_{i + 1}.npz", data=data[part], labels=labels
        )
    return grey


def picture(grey: int, side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), grey).save(file, "PNG")
    return file.getvalue()


def write_folder(folder, side: int = 64):
    for name, grey in {"n1/a.png": 10, "n2/a.png": 20, "n2/b.png": 30}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture(grey, side))


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("00000/img0.png", picture(40))
        archive.writestr("00000/img1.png", picture(50))
        archive.writestr(
            "dataset.json", '{"labels": [["00000/img0.png", 7], ["00000/img1.png", 3]]}'
        )


def greys(images: Images) -> list[int]:
    flat = images.pixels.reshape(len(images), -1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0].tolist()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def forbid_reading(monkeypatch) -> None:
    for name in ("ImageNetBatches", "Pictures"):
        monkeypatch.setattr(imagenet_module, name, lambda *_, **__: pytest.fail("read"))


def test_the_official_archives_are_packed_once(folder, cache, monkeypatch):
    expected = write_archives(folder)
    images = imagenet64(folder, cache=cache)
    assert images.shape == (3, 64, 64)
    assert len(images.classes) == 1000
    assert greys(images) == images.labels.tolist() == expected.tolist()
    [kept] = cache.iterdir()
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        again = imagenet64(folder, cache=cache)
    np.testing.assert_array_equal(again.pixels, images.pixels)
    # As a copy elsewhere, with the same names, sizes and times, it is the same set.
    moved = folder.rename(folder.with_name("moved"))
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        assert len(imagenet64(moved, cache=cache)) == 20
    assert list(cache.iterdir()) == [kept]


def test_changed_archives_are_packed_anew(folder, cache):
    write_archives(folder)
    imagenet64(folder, cache=cache)
    path = folder / "train_data_batch_1.npz"
    size = path.stat().st_size
    data = np.full((2, 3 * 64 * 64), 200, np.uint8)
    np.savez(path, data=data, labels=np.array([1, 2]))
    assert path.stat().st_size == size
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert greys(imagenet64(folder, cache=cache))[:3] == [200, 200, 2]


def test_a_damaged_cache_is_reported_and_made_anew(folder, cache):
    expected = write_archives(folder)
    imagenet64(folder, cache=cache)
    [kept] = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="truncated .* it is made anew"):
        images = imagenet64(folder, cache=cache)
    assert greys(images) == expected.tolist()
    assert list(cache.iterdir()) == [kept]


def test_a_cache_of_other_files_is_not_taken_for_these(folder, cache):
    expected = write_archives(folder)
    imagenet64(folder, cache=cache)
    [kept] = cache.iterdir()
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    kept.unlink()
    other = Images(pixels, np.zeros(1, np.int32), ("a", "b"), "other")
    save_packed(other, kept, made_from="other files")
    assert greys(imagenet64(folder, cache=cache)) == expected.tolist()


def test_the_users_cache_is_the_default(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    write_folder(folder)
    imagenet64(folder)
    [kept] = (tmp_path / "xdg" / "mcmeqx").iterdir()
    assert kept.name.startswith("imagenet64-")


@pytest.mark.parametrize("side", [64, 96])
def test_pictures_in_a_folder_per_class(folder, cache, monkeypatch, side):
    write_folder(folder, side)
    images = imagenet64(folder, cache=cache)
    assert images.classes == ("n1", "n2")
    assert (greys(images), images.labels.tolist()) == ([10, 20, 30], [0, 1, 1])
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        assert len(imagenet64(folder, cache=cache)) == 3
    (folder / "n1" / "c.png").write_bytes(picture(60))
    assert greys(imagenet64(folder, cache=cache)) == [10, 60, 20, 30]


def later(path) -> None:
    """Give the file a later time."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def test_a_picture_written_anew_with_as_many_bytes_is_seen(folder, cache):
    write_folder(folder)
    path, other = folder / "n1" / "a.png", picture(60)
    assert len(path.read_bytes()) == len(other)
    imagenet64(folder, cache=cache)
    path.write_bytes(other)
    later(path)
    assert greys(imagenet64(folder, cache=cache)) == [60, 20, 30]


def test_a_zip_written_anew_is_seen(folder, cache):
    path = folder / "edm.zip"
    for grey in (10, 60):
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("a/1.png", "b/1.png"):
                archive.writestr(name, picture(grey))
        later(path)
        assert greys(imagenet64(path, cache=cache)) == [grey, grey]


def test_what_is_no_picture_does_not_make_a_set_another(folder, cache, monkeypatch):
    write_folder(folder)
    imagenet64(folder, cache=cache)
    (folder / "readme.txt").write_text("of no account")
    (folder / "notes").symlink_to(folder / "gone")
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        assert greys(imagenet64(folder, cache=cache)) == [10, 20, 30]
    rows = [["n1/a.png", 2], ["n2/a.png", 1], ["n2/b.png", 0]]
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    assert imagenet64(folder, cache=cache).labels.tolist() == [2, 1, 0]


def test_edms_zip_is_read_itself_or_in_its_folder(folder, cache):
    write_zip(folder / "edm.zip")
    for path in (folder, folder / "edm.zip"):
        images = imagenet64(path, cache=cache)
        assert (greys(images), images.labels.tolist()) == ([40, 50], [7, 3])
    assert len(list(cache.iterdir())) == 1
    (folder / "edm.zip").rename(folder / "EDM.ZIP")
    assert len(imagenet64(folder, cache=cache)) == 2
    write_zip(folder / "other.zip")
    with pytest.raises(ValueError, match=r"EDM\.ZIP, other\.zip: give one of them"):
        imagenet64(folder, cache=cache)


def test_pictures_beside_a_zip_are_neither_taken_nor_hidden(folder, cache):
    write_folder(folder)
    write_zip(folder / "edm.zip")
    with pytest.raises(ValueError, match=r"pictures, and edm\.zip: move one"):
        imagenet64(folder, cache=cache)
    assert not cache.exists()
    assert len(imagenet64(folder / "edm.zip", cache=cache)) == 2


def test_another_side_is_another_set(folder, cache):
    write_folder(folder)
    assert imagenet(folder, 128, cache=cache).shape == (3, 128, 128)
    assert imagenet(folder, 32, cache=cache).shape == (3, 32, 32)
    assert len(list(cache.iterdir())) == 2


def test_a_packed_file_is_mapped(tmp_path, cache):
    for side, classes in ((64, 10), (32, 10), (64, 1001)):
        pixels = np.zeros((2, side, side, 3), np.uint8)
        names = tuple(map(str, range(classes)))
        images = Images(pixels, np.array([0, 9], np.int32), names, "packed")
        save_packed(images, tmp_path / f"{side}-{classes}.images")
    assert imagenet64(tmp_path / "64-10.images", cache=cache).labels.tolist() == [0, 9]
    with pytest.raises(ValueError, match=r"\(3, 32, 32\), not \(3, 64, 64\)"):
        imagenet64(tmp_path / "32-10.images", cache=cache)
    with pytest.raises(ValueError, match="1001 classes, expected 2 to 1000"):
        imagenet64(tmp_path / "64-1001.images", cache=cache)
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="text is no file of packed images"):
        imagenet64(tmp_path / "text", cache=cache)
    assert not cache.exists()


def test_imagenet64_says_what_it_looked_for(tmp_path, folder, cache):
    looked = "train_data_batch_1 to .*zip.*folder per class.* without --data-dir"
    with pytest.raises(FileNotFoundError, match=f"absent is no folder.*{looked}"):
        imagenet64(tmp_path / "absent", cache=cache)
    (folder / "train_data_batch_11").touch()
    with pytest.raises(FileNotFoundError, match=f"folder holds no images: .*{looked}"):
        imagenet64(folder, cache=cache)
    (folder / "val_data").touch()
    (folder / "train_data_batch_10").touch()
    missing = "lacks train_data_batch_1, .*, train_data_batch_9 of"
    with pytest.raises(FileNotFoundError, match=missing):
        imagenet64(folder, cache=cache)
    assert not cache.exists()


def test_pictures_without_classes_and_bad_archives_leave_no_cache(folder, cache):
    (folder / "a.png").write_bytes(picture(1))
    with pytest.raises(ValueError, match=r"has 1 classes.*dataset\.json"):
        imagenet64(folder, cache=cache)
    write_archives(folder)
    (folder / "train_data_batch_7.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"train_data_batch_7\.npz is no npz file"):
        imagenet64(folder, cache=cache)
    assert not cache.exists() or not list(cache.iterdir())
