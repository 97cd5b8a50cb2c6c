"""One file, one model: a line of JSON that says what it is, and then its arrays."""

import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from mcmeqx._denoiser import Denoiser
from mcmeqx._describe import check_parts, describe, differences, rebuild


def is_array_or_shape(leaf: Any) -> bool:
    """Whether a leaf is what a file stores; a dropout rate, say, is not."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their dotted paths in it."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _header(model: Denoiser) -> dict[str, Any]:
    leaves = jax.tree.leaves(eqx.filter(model, is_array_or_shape))
    return describe(model) | {"arrays": [list(np.shape(leaf)) for leaf in leaves]}


def save_model(path: Path | str, model: Denoiser) -> None:
    """Write `model` to one file, whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(json.dumps(_header(model)).encode() + b"\n")
        eqx.tree_serialise_leaves(file, eqx.filter(model, is_array_or_shape))
    os.replace(part, path)


def read_model(path: Path | str) -> Denoiser:
    """The model in `path`, built from what the file says of it.

    Raises FileNotFoundError, or ValueError if the file is damaged or holds a model with
    a part that is not the library's own.
    """
    return _read(path, None)


def load_model(path: Path | str, like: Denoiser) -> Denoiser:
    """The model in `path`, in the structure of `like`, whose arrays may be shapes.

    Dropout, rematerialisation and precision are those of `like`. Raises
    FileNotFoundError, or ValueError if the file is damaged or holds a model of another
    schedule, parameterisation or network, and then says which.
    """
    return _read(path, like)


def _read(path: Path | str, like: Denoiser | None) -> Denoiser:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        with path.open("rb") as file:
            found = json.loads(file.readline())
            check_parts(found)
            like = rebuild(found) if like is None else like
            _check_same(found, _header(like))
            arrays, static = eqx.partition(like, is_array_or_shape)
            arrays = eqx.tree_deserialise_leaves(file, arrays)
            if file.read(1):
                raise ValueError("it goes on after its last array")
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
        raise ValueError(
            f"{path} does not hold a model of this network: {error}. Give the file "
            "that the same recipe and preset wrote"
        ) from error
    return eqx.combine(arrays, static)


def _check_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    unequal = list(differences(found, wanted))
    pairs = zip(found["arrays"], wanted["arrays"], strict=False)
    arrays = [f"array {i} is {a}, not {b}" for i, (a, b) in enumerate(pairs) if a != b]
    counts = len(found["arrays"]), len(wanted["arrays"])
    if counts[0] != counts[1]:
        unequal.append("it has {} arrays, not {}".format(*counts))
    if unequal or arrays:
        raise ValueError("; ".join(unequal + arrays[:1]))
