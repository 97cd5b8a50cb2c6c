"""What a tree is made of, to compare one run's state with another's."""

import dataclasses
import re
from typing import Any

# A run may go on with another value of these: results stay equal.
_FREE = ("remat",)


def stable_repr(value: Any) -> str:
    """`repr` without the addresses in it, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def structure(tree: Any, name: str = "") -> dict[str, str]:
    """What a tree is made of, by dotted name: arrays as `float32[3,64]`, the rest too.

    Static fields are in it, functions by their names.
    """
    if hasattr(tree, "shape") and hasattr(tree, "dtype"):
        return {name: f"{tree.dtype}{list(tree.shape)}".replace(" ", "")}
    # Equinox may give a module's instance a __qualname__ that is no string.
    if callable(tree) and isinstance(getattr(tree, "__qualname__", None), str):
        return {name: f"{tree.__module__}.{tree.__qualname__}"}
    if isinstance(tree, dict):
        parts = {str(key): value for key, value in tree.items()}
    elif isinstance(tree, tuple | list):
        keys = getattr(tree, "_fields", range(len(tree)))
        parts = {str(key): value for key, value in zip(keys, tree, strict=True)}
    elif dataclasses.is_dataclass(tree):
        names = (f.name for f in dataclasses.fields(tree) if f.name not in _FREE)
        parts = {name: getattr(tree, name) for name in names}
    else:
        return {name: stable_repr(tree)}
    flat = {} if name == "" else {name: type(tree).__name__}
    for key, value in parts.items():
        flat |= structure(value, f"{name}.{key}" if name else key)
    return flat
