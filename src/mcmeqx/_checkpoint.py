"""Checkpoints of a run, and single files that hold one model; the only orbax here.

A checkpoint holds every array of a `TrainState`. Restoring fills the arrays of a state
of the same structure, so the run's config, kept beside it, must rebuild that structure.

A model file is one line of JSON, which says what the arrays mean, and then the arrays.
"""

import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from mcmeqx._denoiser import Denoiser
from mcmeqx._train import TrainState


class Checkpoints:
    """The last two checkpoints of a run, written whole or not at all.

    An instance is a `fit` callback that saves every `every` steps.
    """

    def __init__(self, folder: Path, *, every: int):
        if every < 1:
            raise ValueError(f"every is a number of steps, 1 or more, got {every}")
        self.every = every
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(
            Path(folder).resolve(),
            options=options,
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    def __call__(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Save `state`, under its own step, when `step` is a multiple of `every`."""
        if step % self.every == 0:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Write `state` unless its step is there already; back when it is on disk.

        A state whose parameters are not all finite is not written: `fit` is about to
        stop, and the run must be able to go on from before.
        """
        step = int(state.step)
        parameters = eqx.filter(state.model, eqx.is_inexact_array)
        finite = bool(jnp.isfinite(optax.tree.norm(parameters)))
        if finite and self._manager.latest_step() != step:
            arrays = eqx.filter(state, eqx.is_array)
            self._manager.save(step, args=ocp.args.StandardSave(arrays))

    def restore(self, state: TrainState) -> TrainState:
        """The newest checkpoint in the structure of `state`; `state` if there is none.

        Raises ValueError if the checkpoint belongs to another structure.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        arrays, static = eqx.partition(state, eqx.is_array)
        # Compared beforehand: a restore that fails leaves Orbax's reads hanging.
        found, wanted = _shapes(self._manager.item_metadata(step)), _shapes(arrays)
        for name in wanted | found:
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"the checkpoint of step {step} in {self._manager.directory} does "
                    f"not fit this model and optimiser: {name} is {found.get(name)} "
                    f"there and {wanted.get(name)} here; use the options that made it, "
                    "or another output folder"
                )
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
        return eqx.combine(restored, static)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by name, less the run's key, whose stored form has one axis more."""
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    return {name: shape for name, shape in flat.items() if name != "key"}


def _header(model: Denoiser) -> dict[str, Any]:
    leaves = jax.tree.leaves(model)
    return {
        "schedule": repr(model.schedule),
        "prediction": model.to_x.__name__,
        "arrays": [list(np.shape(leaf)) for leaf in leaves],
    }


def save_model(path: Path, model: Denoiser) -> None:
    """Write `model` to one file, whole or not at all."""
    part = Path(path).with_name(Path(path).name + ".part")
    with part.open("wb") as file:
        file.write(json.dumps(_header(model)).encode() + b"\n")
        eqx.tree_serialise_leaves(file, model)
    os.replace(part, path)


def load_model(path: Path, like: Denoiser) -> Denoiser:
    """The model in `path`, in the structure of `like`, whose arrays may be shapes.

    Raises FileNotFoundError, or ValueError if the file is damaged or holds a model of
    another schedule, parameterisation or network, and then says which.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        with path.open("rb") as file:
            found = json.loads(file.readline())
            for name, wanted in _header(like).items():
                if found[name] != wanted:
                    raise ValueError(_difference(name, found[name], wanted))
            model = eqx.tree_deserialise_leaves(file, like)
            if file.read(1):
                raise ValueError("it goes on after its last array")
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
        raise ValueError(
            f"{path} does not hold a model of this network: {error}. Give the file "
            "that the same recipe and preset wrote"
        ) from error
    return model


def _difference(name: str, found: Any, wanted: Any) -> str:
    if name == "arrays":
        pairs = enumerate(zip(found, wanted, strict=False))
        at = next((f"array {i} is {a}, not {b}" for i, (a, b) in pairs if a != b), "")
        return at or f"it has {len(found)} arrays, not {len(wanted)}"
    return f"its {name} is {found}, not {wanted}"
