"""Checkpoints of a run; the only orbax here.

A checkpoint holds every array of a `TrainState`, the average apart from the rest, and
what the state is made of. Restoring fills the arrays of a state of the same structure.
The batch of step i is a function of the data's seed and of i, so the step is the data's
position too.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import orbax.checkpoint as ocp

from mcmeqx._denoiser import Denoiser
from mcmeqx._describe import describe, rebuild
from mcmeqx._model_file import DAMAGE, is_array_or_shape, named
from mcmeqx._sharding import as_key, is_key
from mcmeqx._structure import structure
from mcmeqx._train import TrainState


class _Manager(ocp.CheckpointManager):
    """Orbax's, but that `fit` alone asks JAX whether all processes are to stop.

    Orbax asks about the step that it saves, from a thread and on one process, and JAX
    counts on questions that rise alike everywhere.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The newest checkpoints of a run, each whole or not there at all.

    Its `save` is what `fit` takes. Saving copies the state to the host and goes on; the
    disk is written meanwhile. The last `keep` of them stay, and every one at a multiple
    of `milestone` if that is given. `config` is any JSON that says how the run was
    made; it is kept beside the state. Another program may read a folder that a run
    saves to. Call `wait` before the program ends, as a `with` block of it does: what is
    being written then is lost. Raises ValueError for numbers below 1, and a config that
    is no JSON; `save` and `wait` raise OSError where the disk takes no more.
    """

    def __init__(
        self,
        folder: Path | str,
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
            "ema": _array_handler(),
            "training": _array_handler(),
            "about": ocp.JsonCheckpointHandler(),
        }
        return _Manager(
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
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    ema=ocp.args.PyTreeSave(_bare(ema)),
                    training=ocp.args.PyTreeSave(_bare(training)),
                    about=ocp.args.JsonSave(about),
                ),
            )
        self._reached = step

    def wait(self) -> None:
        """Come back when all that was begun is on the disk; OSError if it is not."""
        with self._writing():
            self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.wait()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            raise OSError(
                f"a checkpoint could not be written to {self._folder}, those before it "
                f"are whole. Make room there, and go on from them ({error})"
            ) from error

    def restore(self, state: TrainState) -> TrainState:
        """The newest checkpoint in the structure and the places of `state`, or `state`.

        The devices may be others, and more or fewer, than those that saved it. Raises
        ValueError, naming what differs, if the checkpoint is of another structure.
        """
        if not self._saves:
            # Another program may have saved, and deleted, others since.
            self._manager.reload()
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
                ema=_restoring(ema),
                training=_restoring(training),
            ),
        )
        self._reached = step
        arrays = eqx.tree_at(lambda s: s.ema, restored["training"], restored["ema"])
        arrays = _dressed(arrays, eqx.filter(state, eqx.is_array))
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


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    """For arrays, each written by those who hold its first copy.

    By Orbax's default all copies have a share in it, for which a first save compiles a
    program for each shape and device while training waits.
    """
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _bare(tree: Any) -> Any:
    """The tree with the bits of each key in its place."""
    return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, tree)


def _dressed(bare: Any, like: Any) -> Any:
    """What `_bare` was given, of which `like` has the keys' kinds."""
    return jax.tree.map(lambda a, b: as_key(a, b) if is_key(b) else a, bare, like)


def _restoring(arrays: Any) -> ocp.args.PyTreeRestore:
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, _bare(arrays))
    how = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(like, restore_args=how)


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
    except (*DAMAGE, OSError) as error:
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
