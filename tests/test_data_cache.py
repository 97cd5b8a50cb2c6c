from itertools import count
from pathlib import Path

import numpy as np
import pytest

from mcmeqx._packages import package_folder, versions
from mcmeqx.data._cache import cache_folder, cached


def flipped(data: bytes, at: int) -> bytes:
    """One bit of one byte changed."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# The last entry of a zip's directory, in which flags stand at 8 and the method at 10.
ENTRY = b"PK\1\2"
DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "cut at the end": lambda data: data[:-1],
    "empty": lambda data: b"",
    "a bit changed": lambda data: flipped(data, len(data) // 2),
    "said to be encrypted": lambda data: flipped(data, data.rindex(ENTRY) + 8),
    "said to be packed otherwise": lambda data: flipped(data, data.rindex(ENTRY) + 10),
}


def noise() -> dict[str, np.ndarray]:
    return {"noise": np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_reported_and_made_anew(tmp_path, damage):
    path = tmp_path / "deep" / "folder" / "cache.npz"
    cached(path, "key", noise)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    with pytest.warns(RuntimeWarning, match="damaged"):
        arrays = cached(path, "key", noise)
    np.testing.assert_array_equal(arrays["noise"], noise()["noise"])
    again = cached(path, "key", lambda: pytest.fail("the new file was not used"))
    np.testing.assert_array_equal(again["noise"], noise()["noise"])
    assert list(again) == ["noise"]


def test_a_file_that_was_never_a_cache_is_refused_and_stays(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=np.arange(3))
    npz = path.read_bytes()
    np.savez(path, anything=np.array([{}], object))
    for mine in (npz, path.read_bytes(), b"hello", b"\x89PNG", b"\x93NUMPY\1\0v\0{}"):
        path.write_bytes(mine)
        for given in (path, str(path)):
            with pytest.raises(ValueError, match=r"mine\.npz was not .*another path"):
                cached(given, "key", noise)
        assert path.read_bytes() == mine


def test_a_cache_made_for_another_key_is_made_anew(tmp_path):
    path, made = tmp_path / "cache.npz", count()
    for key, expected in (("a", 0), ("a", 0), ("b", 1), ("a", 2)):
        arrays = cached(path, key, lambda: {"made": np.array(next(made))})
        assert arrays["made"] == expected


def test_a_failed_build_leaves_the_folder_and_the_old_file_alone(tmp_path):
    path = tmp_path / "cache.npz"
    cached(path, "key", noise)
    with pytest.raises(ValueError, match="allow_pickle"):
        cached(path, "other", lambda: {"object": np.array([object()])})
    assert list(tmp_path.iterdir()) == [path]
    cached(path, "key", lambda: pytest.fail("the old file was lost"))


def test_a_cache_that_cannot_be_kept_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="no cache kept"):
        arrays = cached(tmp_path / "file" / "cache.npz", "key", noise)
    np.testing.assert_array_equal(arrays["noise"], noise()["noise"])


def test_a_cache_that_may_not_be_read_is_reported(tmp_path, monkeypatch):
    path = tmp_path / "cache.npz"
    cached(path, "a", noise)

    def refuse(*arguments, **options):
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.warns(RuntimeWarning, match="no cache read: not yours"):
        found = cached(path, "a", noise)
    np.testing.assert_array_equal(found["noise"], noise()["noise"])


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mcmeqx"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unusable in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert cache_folder() == tmp_path / "home" / ".cache" / "mcmeqx"


def test_a_missing_package_names_the_remedy():
    for call in (
        lambda: versions(("numpy", "no-such-package-here"), "demo"),
        lambda: package_folder("no_such_package_here", "demo"),
    ):
        with pytest.raises(ImportError, match=r'pip install "mcmeqx\[demo\]"'):
            call()
