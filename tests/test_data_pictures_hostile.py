"""Pictures that are damaged or made to do harm, and how large ones are shrunk."""

import io
import os
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from mcmeqx.data import Pictures, save_packed
from mcmeqx.data import _picture_store as store_module


def noise(width: int, height: int, kind: str = "PNG") -> bytes:
    rng = np.random.default_rng(width * height)
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_zip(path, names: dict[str, bytes]):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in names.items():
            # As another program may write it: zipfile itself mends some names.
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, data)
    return path


LEADING_OUT = (
    "../a.png",
    "a/../../b.png",
    "/etc/a.png",
    "a\\..\\b.png",
    "C:/a.png",
    "a/..",
    "a.png\0.txt",
)


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_zip_with_a_name_that_leads_out_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "set.zip", {"a/b..c.png": noise(4, 4)})
    assert len(Pictures(path)) == 1
    path = write_zip(tmp_path / "set.zip", {"a/b.png": noise(4, 4), name: noise(4, 4)})
    with pytest.raises(ValueError, match=r"set\.zip holds .*leads out"):
        Pictures(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_zip_with_a_name_twice_is_refused(tmp_path):
    path = write_zip(tmp_path / "set.zip", {"a.png": noise(4, 4), "b.png": b""})
    path.write_bytes(path.read_bytes().replace(b"b.png", b"a.png"))
    with pytest.raises(ValueError, match="holds a name twice"):
        Pictures(path)


def png(
    width: int, height: int, rows: bytes, *, bits: int = 8, clear: bytes = b""
) -> bytes:
    """A grey PNG by the format's specification: image data, bits, transparent grey."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    start = struct.pack(">2I5B", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", start) + (chunk(b"tRNS", clear) if clear else b"")
    parts += chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def test_a_png_bomb_is_not_decoded(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "set.zip", {"a.png": png(4, 4, bytes(20))})
    assert Pictures(path).shape == (3, 4, 4)
    bombs = {"more than 67108864 pixels": 8200, "bomb": 10_000, "bomb DOS": 60_000}
    for message, side in bombs.items():
        path = write_zip(tmp_path / "set.zip", {"a.png": png(side, side, bytes(9))})
        with monkeypatch.context() as patch:
            patch.setattr(
                "PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded")
            )
            with warnings.catch_warnings():
                # As for users, who have warnings shown and not raised.
                warnings.simplefilter("default")
                with pytest.raises(ValueError, match=f"a.png .* too large .*{message}"):
                    Pictures(path)


def test_large_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
    size = 2**26 + 1
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(size), compresslevel=1)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=f"a.png in .* has {size} bytes"):
        Pictures(tmp_path / "set.zip")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(noise(40, 40))
    short = store_module.Folder(folder)
    with pytest.raises(ValueError, match=r"a\.png in .* has more than 99 bytes"):
        short.read("a.png", most=99)


def test_a_zip_that_says_too_little_is_not_unpacked(tmp_path):
    path, size, said = tmp_path / "set.zip", 2**26, 1000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(size), compresslevel=1)
    data, fields = path.read_bytes(), struct.Struct("<I")
    path.write_bytes(data.replace(fields.pack(size), fields.pack(said)))
    store = store_module.Zip(path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.png in .* is damaged"):
            store.read("a.png")
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_a_folder_that_cannot_be_read_is_no_class_less(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(noise(4, 4))
    real = os.scandir

    refused = ("b",)

    def scandir(path):
        if str(path).endswith(refused):
            raise PermissionError(f"{path} is not yours")
        return real(path)

    assert Pictures(tmp_path).classes == ("a", "b", "c")
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="b is not yours"):
        Pictures(tmp_path)
    (tmp_path / "b").rename(tmp_path / "c" / ".Trash-b")
    for name in ("lost+found", ".Trash-b"):
        (tmp_path / name).mkdir()
    refused = ("b", "found")
    assert Pictures(tmp_path).classes == ("a", "c")


def test_a_thin_picture_is_not_enlarged_without_bound(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(noise(1, 60_000))
    with pytest.raises(ValueError, match=r"a\.png .* enlarged to 64x3840000"):
        Pictures(folder, side=64).raw(0)


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "short": lambda data: data[:30],
    "empty": lambda data: b"",
    "text": lambda data: b"<html>not found</html>",
    "gif": lambda data: b"GIF89a" + data,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_picture_is_named_and_leaves_nothing(tmp_path, damage, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(noise(16, 16))
    (folder / "b.jpg").write_bytes(damage(noise(16, 16, kind)))
    with pytest.raises(ValueError, match=r"b\.jpg in .* is no PNG or JPEG"):
        save_packed(Pictures(folder), tmp_path / "out" / "set.images")
    assert not list((tmp_path / "out").iterdir())


def test_deep_colours_are_refused(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file, "PNG")
    path = write_zip(tmp_path / "set.zip", {"a.png": file.getvalue()})
    with pytest.raises(ValueError, match=r"a\.png .* mode I;16.*8 bits a channel"):
        Pictures(path)


def test_a_transparent_grey_of_few_bits_is_not_taken_for_another(tmp_path):
    # Two rows of two: a byte for the filter, then grey 3 and 15, of 0 to 15.
    rows = 2 * b"\x00\x3f"
    path = write_zip(tmp_path / "set.zip", {"a.png": png(2, 2, rows, bits=4)})
    assert Pictures(path).raw(0)[0][0, :, 0].tolist() == [51, 255]
    cut = png(2, 2, rows, bits=4, clear=b"\0\3")
    with pytest.raises(ValueError, match=r"a\.png .* of 4 bits a channel: save it"):
        Pictures(write_zip(tmp_path / "clear.zip", {"a.png": cut}))
    eight = png(2, 2, 2 * b"\x00\x33\xff", clear=b"\0\x33")
    path = write_zip(tmp_path / "eight.zip", {"a.png": eight})
    assert (Pictures(path).raw(0)[0] == 255).all()


def test_a_damaged_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "set.zip", {"a.png": noise(16, 16)})
    whole = path.read_bytes()
    for content in (whole[:-30], whole[:50], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"set\.zip is no folder and no zip"):
            Pictures(path)
    changed = bytearray(whole)
    changed[200] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"a\.png in .* is damaged.*CRC"):
        Pictures(path)


@pytest.mark.parametrize("packed", ["ZIP_DEFLATED", "ZIP_BZIP2", "ZIP_LZMA"])
def test_a_picture_that_does_not_unpack_is_named(tmp_path, packed):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", getattr(zipfile, packed)) as file:
        file.writestr("a.png", noise(16, 16))
    whole = path.read_bytes()
    for at in range(40, 240, 20):
        path.write_bytes(whole[:at] + bytes(20) + whole[at + 20 :])
        with pytest.raises(ValueError, match=r"a\.png in .* is damaged"):
            store_module.Zip(path).read("a.png")


# What guided diffusion's loader does to a picture of this size, step by step.
RECIPES = {
    (64, 64): (),
    (70, 100): (("BICUBIC", 64, 91), ("crop", 0, 13)),
    (127, 64): (("crop", 31, 0),),
    (128, 256): (("BOX", 64, 128), ("crop", 0, 32)),
    (300, 520): (
        ("BOX", 150, 260),
        ("BOX", 75, 130),
        ("BICUBIC", 64, 111),
        ("crop", 0, 23),
    ),
    (257, 255): (("BOX", 128, 127), ("BICUBIC", 65, 64), ("crop", 0, 0)),
    (20, 10): (("BICUBIC", 128, 64), ("crop", 32, 0)),
}


@pytest.mark.parametrize(("size", "steps"), RECIPES.items(), ids=str)
def test_pictures_are_shrunk_and_cropped_as_adm_does(tmp_path, size, steps):
    data = noise(*size)
    (tmp_path / "a.png").write_bytes(data)
    expected = Image.open(io.BytesIO(data))
    for step, a, b in steps:
        if step == "crop":
            expected = expected.crop((a, b, a + 64, b + 64))
        else:
            expected = expected.resize((a, b), getattr(Image.Resampling, step))
    pictures = Pictures(tmp_path, side=64)
    assert pictures.shape == (3, 64, 64)
    np.testing.assert_array_equal(pictures.raw(0)[0], np.asarray(expected))
