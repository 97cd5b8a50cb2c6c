"""Multistep consistency on Gaussian mixtures, with an exact teacher.

    python recipes/toy.py --out runs/toy

Sliced 2-Wasserstein distance to the ring's data, 8192 points, mean of seeds 0, 1 and 2
(spread 0.002 to 0.007); of other data 0.023. Three minutes on two CPU cores.

    steps            1      2      4      8      128
    teacher, DDIM    0.71   0.35   0.12   0.043  0.022
    student          0.063  0.037  0.030  0.023
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
from _machine import keep_programs
from _runs import at_least, claim, positive, whole
from _toy_data import Mixture, exact_denoiser, pair, ring
from _toy_plots import plot_ring, plot_trajectories

import mcmeqx as mc
from mcmeqx.metrics import sliced_wasserstein
from mcmeqx.nets import MLPConfig

SCHEDULE = mc.Cosine()
COLUMNS = ("method", "steps", "distance", "samples", "seed", "iterations", "seconds")


@dataclass(frozen=True)
class Config:
    """Students of 1, 2, 4 (and 8) steps, distilled from an exact denoiser."""

    out: Path = Path("runs/toy")
    """Folder of the run: config, students, table and pictures."""
    seed: int = 0
    """Seed of data, initial weights, training noise and sampling noise."""
    iterations: int = 1200
    """Training steps of each student."""
    batch_size: int = 512
    """Points in one batch."""
    learning_rate: float = 1e-3
    """Peak of Adam's learning rate, which falls to zero along a cosine."""
    ema_decay: float = 0.99
    """Decay of the averaged weights that are evaluated."""
    teacher_steps: tuple[float, float] = (32.0, 256.0)
    """Teacher steps at the start and from two thirds of training on."""
    huber_eps: float = 1e-4
    """Where the pseudo-Huber distance turns from quadratic to linear."""
    width: int = 128
    """Hidden units of a student."""
    depth: int = 3
    """Residual layers of a student."""
    std: float = 0.1
    """Standard deviation of every component; the means lie 1 from the origin."""
    samples: int = 8192
    """Points on each side of the sliced Wasserstein distance."""
    students: tuple[int, ...] = (1, 2, 4, 8)
    """Steps of the ring's students; the 1-D picture has those up to 4."""


def build(
    config: Config, mixture: Mixture, student_steps: int
) -> tuple[mc.Denoiser, mc.Learner]:
    """A fresh student and its learner; ValueError if an option cannot be."""
    over = max(1, 2 * config.iterations // 3)
    loss = mc.MultistepConsistencyLoss(
        mc.DistillationTeacher(exact_denoiser(mixture, SCHEDULE), x_var_fraction=0.0),
        mc.Segments(student_steps),
        mc.annealed_steps(*config.teacher_steps, over=over),
        mc.snr_plus_one,
        mc.PseudoHuber(config.huber_eps),
    )
    rate = optax.cosine_decay_schedule(config.learning_rate, config.iterations)
    learner = mc.Learner(loss, optax.adam(rate), config.ema_decay)
    network = MLPConfig(mixture.means.shape[1], config.width, config.depth)
    key, _ = jax.random.split(jax.random.key(config.seed))
    return mc.Denoiser(network.build(key=key), SCHEDULE), learner


def train(
    config: Config, mixture: Mixture, student_steps: int, path: Path
) -> tuple[mc.Denoiser, float]:
    """A student's averaged weights and its training seconds, from `path` if there."""
    student, learner = build(config, mixture, student_steps)
    log = path.with_suffix(".jsonl")
    if not path.exists():
        _, train_key = jax.random.split(jax.random.key(config.seed))
        steps = config.iterations
        callbacks = (
            mc.Speed(batch_size=config.batch_size),
            mc.ProgressBar(path.stem, steps=steps),
            mc.JsonLines(log, every=100, steps=steps),
        )
        batches = mixture.batches(config.batch_size, config.seed)
        state = learner.init(student, key=train_key)
        state = mc.fit(learner, state, batches, steps=steps, callbacks=callbacks)
        mc.save_model(path, state.ema)
    return mc.load_model(path, student), mc.read_metrics(log)[-1]["seconds"]


def run_pair(config: Config, folder: Path) -> None:
    """Trains the students of the 1-D mixture and draws their trajectories."""
    mixture, models = pair(config.std), {}
    for k in (k for k in config.students if k <= 4):
        model, _ = train(config, mixture, k, folder / f"pair-{k}.eqx")
        models[f"student, {k} step" + "s" * (k > 1)] = (model, k)
    models["teacher, 128 DDIM steps"] = (exact_denoiser(mixture, SCHEDULE), 128)
    plot_trajectories(folder / "trajectories.png", mixture, models)


def run_ring(config: Config, folder: Path) -> list[tuple]:
    """Trains the ring's students; the rows of the table, and its picture."""
    mixture = ring(config.std)
    rng = np.random.default_rng([config.seed, 1])
    data, again = mixture.draw(config.samples, rng), mixture.draw(config.samples, rng)
    noise = rng.standard_normal(data.shape).astype(np.float32)
    key = jax.random.key(config.seed)
    rows, points = [], {"teacher, DDIM": {}, "student": {}}

    def score(
        method: str, steps: int, x: np.ndarray, iterations: int, seconds: float
    ) -> None:
        distance = float(sliced_wasserstein(x, data, key=key))
        run = (config.samples, config.seed, iterations, f"{seconds:.1f}")
        rows.append((method, steps, f"{distance:.4f}", *run))

    def sampled(method: str, model: mc.Denoiser, steps: int) -> np.ndarray:
        ts = mc.uniform_grid(steps)
        x = mc.generate(model, mc.DDIM(), ts, noise, key=key, batch_size=len(noise))
        points[method][steps] = x
        return x

    score("data", 0, again, 0, 0.0)
    teacher = exact_denoiser(mixture, SCHEDULE)
    for k in (*config.students, 128):
        score("teacher, DDIM", k, sampled("teacher, DDIM", teacher, k), 0, 0.0)
    for k in config.students:
        model, seconds = train(config, mixture, k, folder / f"ring-{k}.eqx")
        x = sampled("student", model, k)
        score("student", k, x, config.iterations, seconds)
    plot_ring(folder / "ring.png", data, points)
    return rows


def main(config: Config) -> None:
    """Runs both experiments, or only prints the table of a run that is finished."""
    at_least(1, iterations=config.iterations, samples=config.samples)
    at_least(0, seed=config.seed)
    positive(learning_rate=config.learning_rate, std=config.std)
    mc.check_batch_size(config.batch_size, mc.make_mesh())
    keep_programs()
    for k in config.students:
        build(config, ring(config.std), k)
    folder = claim(config.out, "toy", config)
    table = folder / "ring.csv"
    if not table.exists():
        run_pair(config, folder)
        rows = run_ring(config, folder)
        with whole(table) as part, part.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    for row in csv.reader(table.read_text().splitlines()):
        print("{:14} {:>6} {:>9} {:>8} {:>5} {:>11} {:>8}".format(*row))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
