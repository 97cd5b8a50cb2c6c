"""Checkpoints of a run, and single files that hold one model; the only orbax here.

A checkpoint holds every array of a `TrainState`. Restoring fills the arrays of a state
of the same structure, so the run's config, kept beside it, must rebuild that structure.
"""

import os
from pathlib import Path

import equinox as eqx
import jax
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
        self._manager = ocp.CheckpointManager(Path(folder).resolve(), options=options)

    def __call__(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Save `state`, under its own step, when `step` is a multiple of `every`."""
        if step % self.every == 0:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Write `state` unless its step is there already; back when it is on disk."""
        step = int(state.step)
        if self._manager.latest_step() != step:
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
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.StandardRestore(shapes)
            )
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"the checkpoint of step {step} in {self._manager.directory} does not "
                "fit this model and optimiser; use the options that made it, or "
                "another output folder"
            ) from error
        return eqx.combine(restored, static)


def save_model(path: Path, model: Denoiser) -> None:
    """Write the arrays of `model` to one file, whole or not at all."""
    part = Path(path).with_name(Path(path).name + ".part")
    eqx.tree_serialise_leaves(part, model)
    os.replace(part, path)


def load_model(path: Path, like: Denoiser) -> Denoiser:
    """The model in `path`, in the structure of `like`.

    Raises FileNotFoundError, or ValueError if the file holds another structure.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        return eqx.tree_deserialise_leaves(path, like)
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} does not hold a model of this network; give the file that the "
            "same recipe and preset wrote"
        ) from error
