"""What a run costs beside its steps: data, annealing, logging and checkpoints.

    python benchmarks/overhead.py

`steps` are distillation steps of the demo's network on a batch that lies on the devices
already, with a constant number of teacher steps, waited for at the end of a round.
`run` is as many by `mcmeqx.fit` as the recipes call it: batches from images on the
host, annealed teacher steps, progress bar, speed and metrics as JSON lines; `saved`
writes a checkpoint halfway too. Rounds take turns; each becomes a row of `<out>` (run,
device, kind, round). The first step of a round, in which a run's loader starts, has a
column of its own.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
import tyro
from _device import named
from _recipes import at_least
from _tables import appended

import mcmeqx as mc
from mcmeqx._sharding import split_batch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from _machine import Hosts, Mesh, start

COLUMNS: tuple[str, ...] = (
    "run",
    "device",
    "kind",
    "round",
    "first_step_seconds",
    "steps",
    "seconds",
)
BATCH = 16


@dataclass(frozen=True)
class Config:
    """How long to measure."""

    rounds: int = 7
    """Rounds of each kind after a first, which compiles and is left out."""
    steps: int = 60
    """Steps of a round after its first."""
    out: Path = Path("benchmarks/overhead.csv")
    """The table, to which rows are added."""


class Trainee:
    """A learner with its state, on the mesh."""

    def __init__(self, teacher_steps, mesh: jax.sharding.Mesh):
        teacher = mc.emoji_teacher()
        loss = mc.MultistepConsistencyLoss(
            mc.DistillationTeacher(teacher), mc.Segments(8), teacher_steps
        )
        learner = mc.Learner(loss, optax.adam(1e-4))
        state = learner.init(teacher, key=jax.random.key(0))
        self.learner, self.state = mc.place((learner, state), mesh)
        self.mesh = mesh

    def bare(self, batch: mc.Example, steps: int) -> tuple[float, float]:
        """Seconds of a step on a batch, and of so many more."""
        clock = Clock()
        jax.block_until_ready(self._step(batch))
        clock()
        for _ in range(steps):
            metrics = self._step(batch)
        jax.block_until_ready(metrics)
        return clock.read()

    def _step(self, batch: mc.Example) -> Any:
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.learner.step(self.state, batch)
        return metrics

    def whole(
        self, images: mc.data.Images, steps: int, folder: Path, *, saved: bool
    ) -> tuple[float, float]:
        """The same of a run in `folder`; `saved` counts until the checkpoint lies."""
        begun, clock = int(self.state.step), Clock()
        end = begun + steps + 1
        checkpoints = mc.Checkpoints(folder / "checkpoints")
        self.state = mc.fit(
            self.learner,
            self.state,
            mc.data.batches(images, batch_size=BATCH, seed=0, start=begun),
            steps=end,
            callbacks=[
                clock,
                mc.Speed(batch_size=BATCH, flops=1.0, peak=1.0),
                mc.ProgressBar("run", steps=end, start=begun),
                mc.JsonLines(folder / "run.jsonl", every=10, steps=end, start=begun),
            ],
            save=checkpoints.save if saved else None,
            save_every=begun + steps // 2,
            mesh=self.mesh,
        )
        checkpoints.wait()
        jax.block_until_ready(self.state)
        return clock.read()


class Clock:
    """A `fit` callback that notes when the first step was there."""

    def __init__(self):
        self.begun = time.perf_counter()
        self.first: float | None = None

    def __call__(self, *_: Any) -> None:
        """Note it, the first time."""
        self.first = self.first or time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Seconds until then, and since."""
        assert self.first is not None
        return self.first - self.begun, time.perf_counter() - self.first


def main(config: Config) -> dict[str, float]:
    """Measure, write and print; the medians of the other kinds over that of `steps`."""
    at_least(1, rounds=config.rounds)
    at_least(2, steps=config.steps)
    mesh = start(Mesh(), Hosts(), batch_size=BATCH)
    images = mc.data.openmoji()
    alone = Trainee(lambda step: 1280.0, mesh)
    run = Trainee(mc.annealed_steps(64.0, 1280.0, 1000), mesh)
    batch = split_batch(images.take(range(BATCH)), mesh)
    taken: dict[str, list[float]] = {}
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    device = named(jax.devices()[0].device_kind)
    with (
        appended(config.out, COLUMNS) as table,
        tempfile.TemporaryDirectory() as name,
    ):
        folder = Path(name)
        kinds = {
            "steps": lambda: alone.bare(batch, config.steps),
            "run": lambda: run.whole(images, config.steps, folder, saved=False),
            "saved": lambda: run.whole(images, config.steps, folder, saved=True),
        }
        for i in range(config.rounds + 1):
            for kind, call in kinds.items():
                first, rest = call()
                if i:
                    spent = f"{first:.3f}", config.steps, f"{rest:.3f}"
                    row = (began, device, kind, i, *spent)
                    table.writerow(dict(zip(COLUMNS, row, strict=True)))
                    taken.setdefault(kind, []).append(rest)
    medians = {kind: statistics.median(found) for kind, found in taken.items()}
    shares = {k: medians[k] / medians["steps"] - 1.0 for k in ("run", "saved")}
    for kind, share in shares.items():
        print(f"{kind}: {share:.1%} of its steps' time beside them", flush=True)
    return shares


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
