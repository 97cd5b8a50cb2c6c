"""Checkpoints of a run; the only orbax here.

A checkpoint holds every array of a `TrainState`, the average apart from the rest, and
what the state is made of. Restoring fills the arrays of a state of the same structure.
The batch of step i is a function of the data's seed and of i, so the step is the data's
position too.
"""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import orbax.checkpoint as ocp

from mcmeqx._denoiser import Denoiser
from mcmeqx._describe import describe, rebuild
from mcmeqx._model_file import is_array_or_shape, named
from mcmeqx._structure import structure
from mcmeqx._train import TrainState


class Checkpoints:
    """The newest checkpoints of a run, each whole or not there at all.

    Its `save` is what `fit` takes. Saving copies the state to the host and goes on; the
    disk is written meanwhile. The last `keep` of them stay, and every one at a multiple
    of `milestone` if that is given. `config` is any JSON that says how the run was
    made; it is kept beside the state. Another program may read a folder that a run
    saves to. Raises ValueError for numbers below 1, and a config that is no JSON.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        milestone: int | None = None,
        config: dict[str, Any] | None = None,
    ):
        for name, value in {"keep": keep, "milestone": milestone}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is a number, 1 or more, got {value}")
        try:
            json.dumps(config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"config is no JSON: {error}") from error
        self._folder, self._config = Path(folder).resolve(), config
        self._keep: dict[str, Any] = {"max_to_keep": keep, "keep_period": milestone}
        self._reached: int | None = None
        self._manager = self._open(cleanup_tmp_directories=False)
        self._saves = False

    def _open(self, **options: Any) -> ocp.CheckpointManager:
        # Named, so that a process that saved nothing yet can read what another did.
        handlers = {
            "ema": ocp.StandardCheckpointHandler(),
            "training": ocp.StandardCheckpointHandler(),
            "about": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(**self._keep, **options),
            item_handlers=handlers,
        )

    def save(self, state: TrainState) -> None:
        """Begin to write `state`, unless it was just restored or saved.

        Raises ValueError if the folder holds this step or a later one of another run.
        """
        step = int(state.step)
        if step == self._reached:
            return
        if not self._saves:
            # What a killed run left unfinished goes now: one that only reads would take
            # from a run that lives what it is writing.
            self._manager.close()
            self._manager = self._open(cleanup_tmp_directories=True)
            self._saves = True
        newest = self._manager.latest_step()
        if newest is not None and step <= newest:
            raise ValueError(
                f"{self._folder} holds step {newest} already, this state is "
                f"at step {step}: restore what is there, or give another folder"
            )
        ema, training = _split(state)
        about = {
            "model": describe(state.ema),
            "structure": structure(state),
            "config": self._config,
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                ema=ocp.args.StandardSave(ema),
                training=ocp.args.StandardSave(training),
                about=ocp.args.JsonSave(about),
            ),
        )
        self._reached = step

    def wait(self) -> None:
        """Come back when all that was begun is on the disk."""
        self._manager.wait_until_finished()

    def restore(self, state: TrainState) -> TrainState:
        """The newest checkpoint in the structure and the places of `state`, or `state`.

        The devices may be others, and more or fewer, than those that saved it. Raises
        ValueError, naming what differs, if the checkpoint is of another structure.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        about = self._manager.restore(
            step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
        )["about"]
        # Compared beforehand: a restore that fails leaves Orbax's reads hanging.
        self._compare(step, about["structure"], structure(state))
        ema, training = _split(state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                ema=ocp.args.StandardRestore(_like(ema)),
                training=ocp.args.StandardRestore(_like(training)),
            ),
        )
        self._reached = step
        arrays = eqx.tree_at(lambda s: s.ema, restored["training"], restored["ema"])
        return eqx.combine(arrays, eqx.filter(state, eqx.is_array, inverse=True))

    def _compare(self, step: int, found: dict[str, str], wanted: dict[str, str]):
        for name in wanted | found:
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"the checkpoint of step {step} in {self._folder} does "
                    f"not fit this model and optimiser: {name} is {found.get(name)} "
                    f"there and {wanted.get(name)} here; use the options that made it, "
                    "or another output folder"
                )


def _split(state: TrainState) -> tuple[Any, TrainState]:
    """The arrays of the average, and all others with an empty tree in its place."""
    arrays = eqx.filter(state, eqx.is_array)
    nothing = jax.tree.map(lambda a: None, arrays.ema)
    return arrays.ema, eqx.tree_at(lambda s: s.ema, arrays, nothing)


def _like(arrays: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by dotted name."""
    return {name: tuple(leaf.shape) for name, leaf in named(tree).items()}


def load_checkpoint(folder: Path) -> Denoiser:
    """The averaged model of a step's folder, or of the newest step in `folder`.

    The step says in its item `about` what the model is; its item `ema` holds the
    arrays, and nothing else is read. Raises ValueError if `folder` is no such thing.
    """
    folder = Path(folder).resolve()
    if not (folder / "ema").is_dir():
        # Orbax takes any name that ends in a number for a step.
        found = ocp.utils.checkpoint_steps(folder)
        steps = [n for n in found if (folder / str(n)).is_dir()]
        if not steps:
            raise ValueError(
                f"{folder} is no checkpoint: it holds neither a finished step nor an "
                "item ema. Give the folder of a stage or of one of its steps"
            )
        folder = folder / str(max(steps))
    for item in ("about", "ema"):
        if not (folder / item).is_dir():
            raise ValueError(f"{folder} does not hold a model: it has no item {item}")
    try:
        reader = ocp.Checkpointer(ocp.JsonCheckpointHandler())
        model = rebuild(reader.restore(folder / "about")["model"])
        arrays, static = eqx.partition(model, is_array_or_shape)
        return eqx.combine(_restore_arrays(folder / "ema", arrays), static)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{folder} does not hold a model: {error}") from error


def _restore_arrays(folder: Path, shapes: Any) -> Any:
    """The arrays of one item, on this process's first device."""
    with ocp.StandardCheckpointer() as checkpointer:
        # Compared beforehand: a restore that fails leaves Orbax's reads hanging.
        found = _shapes(checkpointer.metadata(folder).item_metadata)
        for name, wanted in _shapes(shapes).items():
            if found.get(name) != wanted:
                raise ValueError(f"{name} is {found.get(name)} there, not {wanted}")
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placed = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), shapes
        )
        return checkpointer.restore(folder, placed)
