"""A model's weights as a safetensors file, which other libraries read too.

One tensor for each array, under its path in the model; the metadata has the model's
description.
"""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mcmeqx._denoiser import Denoiser
from mcmeqx._describe import describe, rebuild
from mcmeqx._model_file import DAMAGE, is_array_or_shape, named
from mcmeqx._packages import optional
from mcmeqx._whole import check_absent, written_whole

DESCRIPTION = "mcmeqx"
"""The entry of the metadata that holds the description."""


def export_weights(path: Path | str, model: Denoiser) -> None:
    """Write the arrays and the description of `model` to a new `.safetensors` file.

    `load` reads it back. Raises FileExistsError if there is a file, ValueError if the
    name does not end in `.safetensors` or the model has a part that is not the
    library's own, or arrays that are not float32 as the library's are, and ImportError
    without safetensors (`pip install "mcmeqx[export]"`).
    """
    path, library = Path(path), optional("safetensors.numpy", "export")
    if path.suffix != ".safetensors":
        raise ValueError(f"exported weights end in .safetensors, got {path}")
    check_absent(path)
    about = describe(model)
    arrays = {
        name: np.ascontiguousarray(leaf)
        for name, leaf in named(eqx.filter(model, is_array_or_shape)).items()
    }
    _check_arrays(arrays, named(eqx.filter(rebuild(about), is_array_or_shape)))
    metadata = {DESCRIPTION: json.dumps(about)}
    content = library.save(arrays, metadata=metadata)
    with written_whole(path, new=True) as file:
        file.write(content)


def read_weights(path: Path) -> Denoiser:
    """The model that `export_weights` wrote to `path`.

    Raises FileNotFoundError, ImportError without safetensors, or ValueError if the file
    is damaged, lacks the description, or holds other arrays than it describes.
    """
    library = optional("safetensors", "export")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with library.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if DESCRIPTION not in metadata:
                raise ValueError("mcmeqx did not write it: no description in it")
            model = rebuild(json.loads(metadata[DESCRIPTION]))
            arrays, static = eqx.partition(model, is_array_or_shape)
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_arrays(found, named(arrays))
    except (library.SafetensorError, *DAMAGE) as error:
        raise ValueError(f"{path} does not hold exported weights: {error}") from error
    names = iter(named(arrays))
    arrays = jax.tree.map(lambda _: jnp.asarray(found[next(names)]), arrays)
    return eqx.combine(arrays, static)


def _check_arrays(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    def kind(arrays: dict[str, Any], name: str) -> str:
        a = arrays.get(name)
        return "absent" if a is None else f"{np.dtype(a.dtype).name}{list(a.shape)}"

    for name in wanted | found:
        if kind(found, name) != kind(wanted, name):
            raise ValueError(f"{name} is {kind(found, name)}, not {kind(wanted, name)}")
