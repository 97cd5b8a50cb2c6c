"""One file, one model: a line of JSON that says what it is, and then its arrays."""

import json
from pathlib import Path
from typing import Any, BinaryIO, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mcmeqx._denoiser import Denoiser
from mcmeqx._describe import describe, differences, rebuild
from mcmeqx._whole import written_whole

DAMAGE = (
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
)


def is_array_or_shape(leaf: Any) -> bool:
    """Whether a leaf is what a file stores; a network's own number, say, is not."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their dotted paths in it."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def check_weights(arrays: Any) -> None:
    """ValueError for shapes where there should be arrays."""
    for name, leaf in named(arrays).items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                f"{name} is the shape {list(leaf.shape)} alone: a model of shapes has "
                "no weights to write, give the model that they are of"
            )


def _header(model: Denoiser) -> dict[str, Any]:
    leaves = jax.tree.leaves(eqx.filter(model, is_array_or_shape))
    return describe(model) | {"arrays": [list(np.shape(leaf)) for leaf in leaves]}


def save_model(
    path: Path | str, model: Denoiser, *, stored: Literal["float16"] | None = None
) -> None:
    """Write `model` to one file, whole or not at all.

    `stored` float16 halves the file: float32 arrays are rounded to 11 bits, and read
    back as float32. Arrays of another precision than the library's, float32, come back
    by `load_model` alone. Raises ValueError, and writes nothing, for another `stored`
    or if an array is too large for it.
    """
    _check_stored(stored)
    path = Path(path)
    header, arrays = _header(model), eqx.filter(model, is_array_or_shape)
    check_weights(arrays)
    if stored is not None:
        header |= {"stored": stored}
        arrays = jax.tree.map(_halved, arrays)
    with written_whole(path) as file:
        file.write(json.dumps(header).encode() + b"\n")
        eqx.tree_serialise_leaves(file, arrays)


def _halved(leaf: jax.Array) -> jax.Array:
    """A float32 array as float16; others as they are."""
    if leaf.dtype != jnp.float32:
        return leaf
    half = leaf.astype(jnp.float16)
    if not jnp.isfinite(half).all():
        raise ValueError(
            f"weights reach {float(jnp.abs(leaf).max())}, float16 holds 65504 at most: "
            "store them as they are"
        )
    return half


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
        what = "a folder, and no model file" if path.is_dir() else "no model file"
        raise FileNotFoundError(f"there is {what} {path}")
    remedy = "" if like is None else ". Give the file that the same preset wrote"
    try:
        with path.open("rb") as file:
            found = _description(file.readline())
            like = rebuild(found) if like is None else like
            _check_same(found, _header(like))
            arrays, static = eqx.partition(like, is_array_or_shape)
            arrays = _arrays(file, arrays, found.get("stored"))
            if file.read(1):
                raise ValueError("it goes on after its last array")
    except DAMAGE as error:
        raise ValueError(
            f"{path} does not hold a model of this network: {error}{remedy}"
        ) from error
    return eqx.combine(arrays, static)


def _description(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(
            "it does not begin as files of save_model do (load_sampler reads samplers)"
        ) from error


def _check_stored(stored: str | None) -> None:
    if stored not in (None, "float16"):
        raise ValueError(
            f"arrays stored as {stored} are not known: float16, or None for as they are"
        )


def _arrays(file: BinaryIO, like: Any, stored: str | None) -> Any:
    """The arrays that follow the header, in the precision of `like`."""
    _check_stored(stored)

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        half = stored is not None and leaf.dtype == jnp.float32
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float16 if half else dtype(leaf))

    def dtype(leaf: Any) -> np.dtype:
        # NumPy's float64 comes back as what JAX makes of it.
        return jax.dtypes.canonicalize_dtype(leaf.dtype)

    try:
        arrays = eqx.tree_deserialise_leaves(file, jax.tree.map(shape, like))
    except DAMAGE as error:
        raise ValueError(f"its arrays are cut off or others ({error})") from error
    return jax.tree.map(lambda array, leaf: array.astype(dtype(leaf)), arrays, like)


def _check_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    unequal = list(differences(found, wanted))
    pairs = zip(found["arrays"], wanted["arrays"], strict=False)
    arrays = [f"array {i} is {a}, not {b}" for i, (a, b) in enumerate(pairs) if a != b]
    counts = len(found["arrays"]), len(wanted["arrays"])
    if counts[0] != counts[1]:
        unequal.append("it has {} arrays, not {}".format(*counts))
    if unequal or arrays:
        raise ValueError("; ".join(unequal + arrays[:1]))
