"""A whole sampler as one file: a program that needs JAX alone, and its weights.

The file is a zip archive of `program` (StableHLO as `jax.export` serialises it),
`weights.npz`, arrays in the program's order, and `about.json`. The program takes
`(weights, noise, labels, seed)`, without `labels` for a model of none.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float

from mcmeqx._checks import check_guidance, check_labels, check_times, label_range
from mcmeqx._denoiser import Model
from mcmeqx._generate import sample_rows
from mcmeqx._model_file import DAMAGE, check_weights, is_array_or_shape
from mcmeqx._packages import optional
from mcmeqx._sampler import AbstractSampler
from mcmeqx._whole import check_absent, written_whole
from mcmeqx._zips import ZIP_DAMAGE
from mcmeqx.nets._attention import formula_alone

_DAMAGE = (*ZIP_DAMAGE, *DAMAGE, struct.error)

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

ExportedSampler = Callable[..., Float[Array, "n *shape"]]
"""`(noise, labels=None, *, seed=0) -> x`, a batch of samples."""


def export_sampler(
    path: Path | str,
    model: Model,
    sampler: AbstractSampler,
    ts: np.ndarray,
    shape: tuple[int, ...],
    *,
    labelled: bool = False,
    guidance: float | None = None,
    batch_size: int | None = None,
    platforms: Sequence[str] | None = None,
) -> None:
    """Write what `generate` does on the grid `ts`, for samples of `shape`, to `path`.

    `labelled` says whether the program takes labels, `guidance` is the scale for a
    student of many. A `batch_size` of None leaves the number of rows to the caller.
    `platforms` are those of `jax.export`, by default the present one and the CPU.

    Raises FileExistsError if there is a file, ValueError if the model does not take a
    sample of `shape`, lacks a label or guidance that it needs or has arrays of
    bfloat16, for a `ProbabilityFlow`, a grid without a step or that does not fall, a
    `batch_size` below 1, a `guidance` below 0 or other `platforms`, and ImportError
    without flatbuffers (`pip install "mcmeqx[export]"`).
    """
    check_times(ts, rising=sampler.rising)
    check_guidance(guidance)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is None or 1 or more, got {batch_size}")
    unknown = set(platforms or ()) - set(_PLATFORMS)
    if isinstance(platforms, str) or unknown:
        known = ", ".join(_PLATFORMS)
        raise ValueError(f"platforms are some of {known}, in a list, got {platforms}")
    path = Path(path)
    optional("flatbuffers", "export")
    check_absent(path)
    arrays, static = eqx.partition((model, sampler), is_array_or_shape)
    check_weights(arrays)
    weights, structure = jax.tree.flatten(arrays)
    for weight in weights:
        if weight.dtype.kind == "V":
            raise ValueError(
                f"arrays of {weight.dtype} are not kept: give the model float32 ones, "
                f"and to compute in {weight.dtype} its dtype"
            )
    times = np.asarray(ts, np.float32)

    def program(weights, noise, labels, seed):
        model, sampler = eqx.combine(jax.tree.unflatten(structure, weights), static)
        scale = None if guidance is None else jnp.float32(guidance)
        keys = jax.random.split(jax.random.key(seed), noise.shape[0])
        with formula_alone():
            return sample_rows(model, sampler, times, noise, labels, scale, keys)

    rows = export.symbolic_shape("n")[0] if batch_size is None else batch_size
    # Not `default_backend`: that of a GPU is "gpu", which no program is made for.
    present = export.default_export_platform()
    exporting = export.export(
        jax.jit(program),
        platforms=tuple(dict.fromkeys(platforms or (present, "cpu"))),
    )
    try:
        exported = exporting(
            [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in weights],
            jax.ShapeDtypeStruct((rows, *shape), jnp.float32),
            jax.ShapeDtypeStruct((rows,), jnp.int32) if labelled else None,
            jax.ShapeDtypeStruct((), jnp.uint32),
        )
    except TypeError as error:
        raise ValueError(
            f"the model does not take a sample of shape {shape}: {error}"
        ) from error
    except NotImplementedError as error:
        raise ValueError(
            f"{type(sampler).__name__} asks the host, as what solves an equation does "
            "to tell of its failure, and an exported program cannot: take another, as "
            f"DPMSolver() ({error})"
        ) from error
    about = {
        "shape": list(shape),
        "labelled": labelled,
        "label_range": label_range(model),
        "batch_size": batch_size,
        "weights": len(weights),
        "times": times.tolist(),
    }

    with written_whole(path, new=True) as part, zipfile.ZipFile(part, "w") as file:
        file.writestr("about.json", json.dumps(about))
        file.writestr("program", exported.serialize())
        with file.open("weights.npz", "w", force_zip64=True) as stream:
            np.savez(stream, *[np.asarray(a) for a in weights])


def load_sampler(path: Path | str) -> ExportedSampler:
    """The sampler in `path`: `(noise, labels=None, *, seed=0) -> x`.

    It runs on the default device if that is one of the platforms it was exported for.
    Row i depends on its noise, its label, `seed` and i alone, as that of `generate` on
    `key(seed)`. Raises FileNotFoundError, ValueError if the file is damaged or no
    exported sampler, and ImportError without `pip install "mcmeqx[export]"`; the
    sampler raises ValueError for noise of another shape, for labels missing, not taken
    or of no class, and for a `seed` below 0 or of more than 32 bits.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no exported sampler {path}")
    optional("flatbuffers", "export")
    try:
        with zipfile.ZipFile(path) as file:
            about = json.loads(file.read("about.json"))
            exported = export.deserialize(bytearray(file.read("program")))
            with np.load(io.BytesIO(file.read("weights.npz"))) as stored:
                weights = [
                    jnp.asarray(stored[f"arr_{i}"]) for i in range(about["weights"])
                ]
            if missing := {"shape", "labelled", "batch_size"} - about.keys():
                raise ValueError(f"it does not say its {', '.join(sorted(missing))}")
    except _DAMAGE as error:
        raise ValueError(
            f"{path} does not hold a sampler of export_sampler: {error}"
        ) from error
    call = jax.jit(exported.call)

    def run(noise, labels=None, *, seed: int = 0):
        noise = jnp.asarray(noise, jnp.float32)
        labels = None if labels is None else np.asarray(labels)
        _check_rows(about, noise, labels)
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
            raise ValueError(f"seed is a whole number from 0 to 2**32 - 1, got {seed}")
        labels = None if labels is None else jnp.asarray(labels, jnp.int32)
        return call(weights, noise, labels, np.uint32(seed))

    return run


def _check_rows(about: dict[str, Any], noise, labels) -> None:
    rows = about["batch_size"] or len(noise)
    if noise.shape != (rows, *about["shape"]) or not rows:
        raise ValueError(
            f"this sampler takes noise of shape ({about['batch_size'] or 'n'}, "
            f"{', '.join(map(str, about['shape']))}), got {noise.shape}"
        )
    if about["labelled"] != (labels is not None):
        raise ValueError(
            "this sampler "
            + ("needs labels" if about["labelled"] else "takes no labels")
            + f", got {'None' if labels is None else 'labels'}"
        )
    check_labels(labels, len(noise), about.get("label_range"))
