"""Where pictures lie: a folder, or a zip that is read where it is."""

import abc
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

from mcmeqx._zips import ZIP_DAMAGE

_MOST_BYTES = 2**26


class AbstractStore(abc.ABC):
    """Files by name; a name has forward slashes and never leads out of the store."""

    path: Path
    """The folder, or the zip file."""
    names: tuple[str, ...]
    """Names of all files but hidden ones, sorted."""

    @abc.abstractmethod
    def read(self, name: str, *, most: int = _MOST_BYTES) -> bytes:
        """The bytes of a file, `ValueError` for more than `most` and for damage."""

    @abc.abstractmethod
    def stamp(self, names: Iterable[str]) -> str:
        """A text that changes with the files `names`: another one, or one rewritten."""


class Folder(AbstractStore):
    """The files in the folder `path` and the folders below it.

    A link at the top level is followed, deeper ones to folders are not. `OSError` for
    a folder that cannot be read, unless it is hidden: without it, later classes would
    have other labels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with os.scandir(path) as entries:
            top = [(entry.name, entry.is_dir()) for entry in entries]
        names = [name for name, is_folder in top if not is_folder]
        for name in (n for n, is_folder in top if is_folder and not _is_hidden(n)):
            for folder, inside, files in os.walk(path / name, onerror=_raised):
                inside[:] = [name for name in inside if not _is_hidden(name)]
                inner = Path(folder).relative_to(path).as_posix()
                names += [f"{inner}/{file}" for file in files]
        self.names = _shown(names)

    def read(self, name: str, *, most: int = _MOST_BYTES) -> bytes:
        """The bytes of the file `name`."""
        with (self.path / name).open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise ValueError(f"{name} in {self.path} has more than {most} bytes")
        return data

    def stamp(self, names: Iterable[str]) -> str:
        """Name, size and time of each file."""
        return "\n".join(
            f"{name} {(stat := (self.path / name).stat()).st_size} {stat.st_mtime_ns}"
            for name in names
        )


class Zip(AbstractStore):
    """The files in the zip `path`, which stays open and is not unpacked.

    `FileNotFoundError` where it is none; `ValueError` where it is damaged, or a name in
    it is absolute, holds `..` or a backslash, or comes twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no folder and no file")
        try:
            self._archive = zipfile.ZipFile(path)
        except ZIP_DAMAGE as error:
            raise ValueError(
                f"{path} is no folder and no zip, or a damaged zip ({error!r}): "
                "give a folder of pictures, or a zip of them"
            ) from error
        # As they stand in the file: zipfile cuts a name at a zero byte.
        names = [info.orig_filename for info in self._archive.infolist()]
        for name in names:
            _refuse_leading_out(name, path)
        if len(set(names)) != len(names):
            raise ValueError(f"{path} holds a name twice: zip the pictures again")
        self.names = _shown([name for name in names if not name.endswith("/")])

    def read(self, name: str, *, most: int = _MOST_BYTES) -> bytes:
        """The bytes of the file `name`."""
        try:
            info = self._archive.getinfo(name)
            if info.file_size > most:
                raise ValueError(
                    f"{name} in {self.path} has {info.file_size} bytes, "
                    f"more than {most}"
                )
            # Not `read` of all, which unpacks what there is before it counts.
            with self._archive.open(info) as file:
                return file.read(info.file_size)
        except ZIP_DAMAGE as error:
            raise ValueError(f"{name} in {self.path} is damaged: {error!r}") from error

    def stamp(self, names: Iterable[str]) -> str:
        """Name, size and time of the zip."""
        stat = self.path.stat()
        return f"{self.path.name} {stat.st_size} {stat.st_mtime_ns}"


def _raised(error: OSError) -> None:
    raise error


def _refuse_leading_out(name: str, path: Path) -> None:
    leads_out = ".." in name.split("/") or PureWindowsPath(name).anchor
    if leads_out or "\\" in name or "\0" in name:
        raise ValueError(
            f"{path} holds {name!r}, a name that leads out of it or may: "
            "zip the pictures again with plain names"
        )


def _shown(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(n for n in names if not any(map(_is_hidden, n.split("/")))))


def _is_hidden(name: str) -> bool:
    """Whether a system made the file or folder, for itself."""
    return name.startswith((".", "__MACOSX")) or name == "lost+found"
