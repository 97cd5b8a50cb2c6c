"""One stage of training: it resumes, can be stopped, and says how to look into it."""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from _capsule import Capsule, read_capsule, replay, save_capsule
from _grids import Grids
from _machine import first, meet
from _runs import alone, at_least, positive
from jax.sharding import Mesh

import mcmeqx as mc

_EVERY = 10
_APART = 100
"""Steps between checkpoints at least: one takes a CPU the time of some three."""


@dataclass(frozen=True)
class Plan:
    """How a stage trains; refused, when made, if it could not."""

    iterations: int
    batch_size: int
    learning_rate: float
    ema_decay: float
    seed: int
    mesh: Mesh
    accumulate: int = 1
    flip: bool = False
    """Mirror half of the images."""
    replay: Path | None = None
    """A capsule to look into, instead of training."""

    def __post_init__(self) -> None:
        """ValueError, before anything is written, for what training stumbles over."""
        at_least(1, iterations=self.iterations)
        at_least(0, seed=self.seed)
        positive(learning_rate=self.learning_rate)
        mc.check_batch_size(self.batch_size, self.mesh, self.accumulate)
        self.learner(mc.DiffusionLoss())

    def learner(self, loss: mc.AbstractLoss) -> mc.Learner:
        """Adam with warm-up and cosine decay, gradients clipped at norm 1."""
        warmup = min(self.iterations // 20, self.iterations - 1)
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, warmup, self.iterations, 0.05 * self.learning_rate
        )
        adam = optax.adam(rate, b1=0.9, b2=0.99, eps=1e-12)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
        return mc.Learner(loss, optimizer, self.ema_decay, self.accumulate)

    def batches(self, images: mc.data.Images, start: int) -> Iterator[mc.Example]:
        """This process's share of the batches from step `start` on."""
        return mc.data.batches(
            images,
            batch_size=self.batch_size,
            seed=self.seed,
            start=start,
            flip=self.flip,
            process=jax.process_index(),
            processes=jax.process_count(),
        )


class Trained(NamedTuple):
    """A model, where its weights are from, and what they cost if that is known."""

    model: Any
    weights: str
    iterations: int | None
    seconds: float | None


def train(
    name: str,
    run: Path,
    loss: mc.AbstractLoss,
    model: mc.Denoiser,
    images: mc.data.Images,
    plan: Plan,
    *,
    grid: Any,
    guidance: float | None = None,
    key: jax.Array,
) -> Trained:
    """The EMA after `plan.iterations` steps; resumes, or loads what is done.

    Writes `<name>.eqx`, checkpoints in `<name>/`, metrics in `<name>.jsonl` and, some
    ten times, DDIM samples at the times `grid` (and the scale `guidance`, if the model
    takes one) in `<name>_samples/`. Raises ValueError for a capsule of a stage that is
    finished, or not yet begun.
    """
    done, log = run / f"{name}.eqx", run / f"{name}.jsonl"
    capsule = None if plan.replay is None else read_capsule(plan.replay)
    if capsule and done.exists() == (capsule.stage == name):
        state = "finished" if done.exists() else "not finished"
        raise ValueError(
            f"{capsule.path} is of the stage {capsule.stage}, and {name} is {state}: "
            "give the command and the run folder that it was left by"
        )
    if not done.exists():
        with alone(run / f"{name}.lock"):
            _fit(done, loss, model, images, plan, grid, guidance, key, capsule)
    records = mc.read_metrics(log)
    seconds = records[-1]["seconds"] if records else None
    return Trained(mc.load_model(done, model), "this run", plan.iterations, seconds)


def _fit(
    done: Path,
    loss,
    model,
    images,
    plan: Plan,
    grid,
    guidance,
    key,
    capsule: Capsule | None,
) -> None:
    """From the latest checkpoint to the end, and the average into `done`."""
    name, run = done.stem, done.parent
    every = min(1000, plan.iterations, max(_APART, plan.iterations // 10))
    checkpoints = mc.Checkpoints(run / name, config=_config(run))
    learner = plan.learner(loss)
    state = checkpoints.restore(learner.init(model, key=key, mesh=plan.mesh))
    if capsule is not None:
        raise SystemExit(replay(capsule, learner, state))
    begun = int(state.step)
    pictures = Grids(
        run / f"{name}_samples",
        images,
        grid,
        guidance,
        every=max(1, plan.iterations // 10),
        mesh=plan.mesh,
    )
    if begun == 0:
        pictures(0, state, {})
    seen = _seen(name, run, learner, state, images, plan, begun) if first() else []
    board = _board(name, run, plan, begun)
    # Given away, not lent: a name here would keep a second state on the devices.
    states = [state]
    del state
    try:
        state = mc.fit(
            learner,
            states.pop(),
            plan.batches(images, begun),
            steps=plan.iterations,
            callbacks=[*seen, *board, pictures],
            save=checkpoints.save,
            save_every=every,
            mesh=plan.mesh,
        )
    except mc.Stopped as stopped:
        raise _last_words(stopped, checkpoints, done, plan.mesh) from None
    finally:
        checkpoints.wait()
        for writer in board:
            writer.close()
    ema = mc.gathered(state.ema, plan.mesh)
    if first():
        mc.save_model(done, ema)
    meet(f"{name} saved")


def _config(run: Path) -> dict[str, Any] | None:
    """The options that `claim` wrote into the run's folder."""
    path = run / "config.json"
    return json.loads(path.read_text()) if path.exists() else None


def _seen(
    name, run, learner, state, images, plan: Plan, begun: int
) -> list[mc.Callback]:
    """What a person sees of training beside the pictures."""
    log = run / f"{name}.jsonl"
    flops = plan.batch_size * learner.flops(state, images.take(range(1)))
    peak = plan.mesh.size * mc.matmul_peak(state.model.dtype)
    return [
        mc.Speed(batch_size=plan.batch_size, flops=flops, peak=peak),
        mc.ProgressBar(name, steps=plan.iterations, start=begun),
        mc.JsonLines(log, every=_EVERY, steps=plan.iterations, start=begun),
    ]


def _board(name: str, run: Path, plan: Plan, begun: int) -> list[mc.TensorBoard]:
    """TensorBoard's writer, where its extra is installed."""
    if not first() or not mc.TensorBoard.installed():
        return []
    folder = run / "tensorboard" / name
    return [mc.TensorBoard(folder, every=min(_EVERY, plan.iterations), start=begun)]


def _last_words(
    stopped: mc.Stopped, checkpoints: mc.Checkpoints, done: Path, mesh: Mesh
) -> SystemExit:
    """Save what a stopped run had reached; the exit that says how to go on."""
    checkpoints.save(stopped.state)
    command = shlex.join(["python", *sys.argv])
    if isinstance(stopped, mc.NonFiniteLossError):
        capsule = done.with_name(f"{done.stem}_capsule.npz")
        batch = mc.gathered(stopped.batch, mesh)
        if first():
            save_capsule(capsule, done.stem, stopped.step, batch)
        print(
            f"\n{stopped}. Look into it with:\n\n    {command} --replay {capsule}\n",
            file=sys.stderr,
        )
        return SystemExit(1)
    if not isinstance(stopped, mc.Interrupted):
        raise stopped
    print(
        f"\n{stopped}; saved. The same command goes on:\n\n    {command}\n",
        file=sys.stderr,
    )
    return SystemExit(128 + stopped.signal)
