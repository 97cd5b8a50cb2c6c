"""A capsule: the batch and step that a run died of, and a look into it."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from _runs import whole

import mcmeqx as mc

_NONE = np.zeros(0, np.int32)
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


class Capsule(NamedTuple):
    """What a capsule holds, and where it lies."""

    path: Path
    stage: str
    batch: mc.Example
    step: int


def save_capsule(path: Path, stage: str, step: int, batch: mc.Example) -> None:
    """Write a step and its whole batch; the checkpoint of `stage` is the state."""
    label = _NONE if batch.label is None else batch.label
    with whole(path) as part, part.open("wb") as file:
        np.savez(file, x=batch.x, label=label, step=step, stage=stage)


def read_capsule(path: Path) -> Capsule:
    """The capsule in a file; ValueError if there is none."""
    try:
        # Opened here, since np.load leaves a file that is no whole zip open.
        with path.open("rb") as file, np.load(file) as stored:
            x, label = stored["x"], stored["label"]
            stage, step = str(stored["stage"]), int(stored["step"])
    except _DAMAGE as error:
        raise ValueError(f"{path} is no capsule of a stopped run: {error}") from error
    batch = mc.Example(jnp.asarray(x), jnp.asarray(label) if label.size else None)
    return Capsule(path, stage, batch, step)


def replay(capsule: Capsule, learner: mc.Learner, state: mc.TrainState) -> str:
    """A table of each example's loss and gradient norm in the step of the capsule.

    `state` is the run's newest checkpoint: no step since that of the capsule has
    changed a parameter. Raises ValueError if the checkpoint is of another step.
    """
    _, _, batch, step = capsule
    if step != int(state.step):
        raise ValueError(
            f"{capsule.path} is of step {step}, the newest checkpoint of step "
            f"{int(state.step)}: give the run folder that the capsule lies in"
        )
    before = eqx.tree_at(lambda s: s.step, state, jnp.asarray(step - 1, jnp.int32))
    losses, norms = learner.examine(before, batch)
    lines = [f"step {step}: loss and gradient norm of each example"]
    for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        finite = np.isfinite(loss) and np.isfinite(norm)
        mark = "" if finite else "   <- not finite"
        range_of_x = f"x in [{batch.x[i].min():.3g}, {batch.x[i].max():.3g}]"
        lines.append(f"{i:5d} {loss:12.5g} {norm:12.5g}   {range_of_x}{mark}")
    return "\n".join(lines)
