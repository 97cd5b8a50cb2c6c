"""A run's folder belongs to one recipe and configuration; files are written whole."""

import contextlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _machine import by_first, first, meet
from filelock import FileLock, Timeout

_PART = "part_"


def fill(options: Any, **defaults: Any) -> Any:
    """The dataclass with each of the named fields that is None at its default."""
    empty = {k: v for k, v in defaults.items() if getattr(options, k) is None}
    return replace(options, **empty)


def at_least(least: int, **values: float) -> None:
    """ValueError that names the first of the values that is below `least`."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {least} or more, got {value}")


def positive(**values: float) -> None:
    """ValueError that names the first of the values that is not above 0 and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is a positive number, got {value}")


def claim(out: Path, recipe: str, config: Any, *apart: str, **more: Any) -> Path:
    """The run folder `out`, with the config.json of this recipe and dataclass.

    The fields `out` and `apart` may differ from one call to the next; `more` is kept
    beside the fields. Raises ValueError if the folder is another run's, naming the
    option that differs, or holds files that are no run's.
    """
    fields = {k: v for k, v in asdict(config).items() if k not in ("out", *apart)}
    wanted = _flat(json.loads(json.dumps(fields | more, default=str)))
    wanted = {"recipe": recipe} | wanted
    path = out / "config.json"
    if path.exists():
        found = json.loads(path.read_text())
        for name in wanted | found:
            if found.get(name, "nothing") != wanted.get(name, "nothing"):
                raise ValueError(
                    f"{out} holds a run with {name}={found.get(name)}, and "
                    f"{name}={wanted.get(name)} is asked for; give that value back, or "
                    "another folder"
                )
    elif out.exists() and any(not is_part(p) for p in out.iterdir()):
        raise ValueError(
            f"{out} has files in it but no config.json of this recipe; "
            "give another folder"
        )
    # All have looked before one writes.
    meet("run folder found")
    if first():
        out.mkdir(parents=True, exist_ok=True)
        with whole(path) as part:
            part.write_text(json.dumps(wanted, indent=1) + "\n")
        print(f"run folder: {out}", flush=True)
    meet("run folder made")
    return out


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; ValueError if another program does.

    The system gives it back when a program ends, however it ends.
    """
    with contextlib.ExitStack() as held:
        failed = None
        if first():
            try:
                held.enter_context(FileLock(path, timeout=0))
            except Exception as error:
                failed = error
        # All end: those left would wait for the first.
        if not by_first(failed is None):
            if not isinstance(failed, Timeout | None):
                raise failed
            raise ValueError(
                f"another program trains in {path.parent} now (it holds {path}): wait "
                "for it, or give another folder"
            )
        yield


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` if nothing fails meanwhile.

    It is this call's own: of two that write the same, the last one counts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{_PART}{secrets.token_hex(8)}_{path.name}")
    try:
        yield part
        # Else a crash of the machine could leave the name without the contents.
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_part(path: Path) -> bool:
    """Whether a cut run left this file unfinished."""
    return path.name.startswith(_PART)


def file_name(text: str) -> str:
    """The text with all but letters and digits made underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")
