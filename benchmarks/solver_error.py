"""Error and image quality of the teacher's samplers against network evaluations.

    python benchmarks/solver_error.py --problem mixture
    python benchmarks/solver_error.py --problem teacher

`rms_error` is the root mean square distance, per element, of a sample to the end of
the model's own flow from the same noise. `mixture`: 16 Gaussians in 192 dimensions with
their exact denoiser, in float32; the flow is solved by Dopri8 in float64 to 1e-10.
Runge-Kutta methods take equal steps of the angle, or, to compare, of other variables.
`teacher`: the package's emoji teacher, its flow solved by Tsit5 to 1e-5, and Frechet
distances of the samples to OpenMoji and to the ends of the flow, on EfficientNet-Lite0
features. Writes `<out>/solver_error_<problem>.csv` and a plot beside it. A finished row
is kept: the same command goes on where it stopped.
"""

import csv
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure

import mcmeqx as mc

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from _compare import data_moments
from _runs import whole
from _toy_data import Mixture, exact_denoiser

COLUMNS: tuple[str, ...] = (
    "method",
    "evaluations",
    "rms_error",
    "distance_to_data",
    "distance_to_flow",
    "samples",
    "seed",
    "seconds",
)
COUNTS = (4, 8, 16, 32, 64, 128, 256, 512)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class Config:
    """What to measure."""

    problem: Literal["mixture", "teacher"] = "mixture"
    """Error to the exact flow on a mixture, or image quality of the emoji teacher."""
    samples: int = 96
    """Samples of each row."""
    seed: int = 0
    """Seed of noise and classes."""
    out: Path = Path("benchmarks")
    """Folder of the table and the plot."""


class Problem(NamedTuple):
    """A model, where its samples start and end, and how else they are judged."""

    model: Any
    noise: np.ndarray
    labels: np.ndarray | None
    data: mc.Example
    exact: np.ndarray
    distances: Callable[[np.ndarray], tuple[float, float]] | None


def mixture(config: Config) -> Problem:
    """16 Gaussians of deviation 0.2 about random corners of a 192-dimensional cube."""
    rng = np.random.default_rng(config.seed)
    means = 0.5 * rng.choice([-1.0, 1.0], (16, 192)).astype(np.float32)
    data = Mixture(jnp.asarray(means), 0.2)
    model = exact_denoiser(data, mc.Cosine())
    noise = rng.standard_normal((config.samples, 192), np.float32)
    batch = mc.Example(jnp.asarray(data.draw(256, rng)))
    return Problem(model, noise, None, batch, _exact_flow(means, noise), None)


def _exact_flow(means: np.ndarray, noise: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        schedule = mc.Cosine()
        network = Mixture(jnp.asarray(means, jnp.float64), 0.2)

        def end(z):
            return mc.probability_flow(
                # A Denoiser would hand the network a float32 logsnr.
                lambda z, t: network(z, schedule.logsnr(t)),
                schedule,
                z,
                1.0,
                0.0,
                solver=diffrax.Dopri8(),
                stepsize_controller=mc.adaptive_steps(1e-10),
            ).z

        return np.asarray(jax.jit(jax.vmap(end))(noise.astype(np.float64)))


def teacher(config: Config) -> Problem:
    """The emoji teacher against OpenMoji."""
    images, network = mc.data.openmoji(), mc.metrics.EfficientNetLite0.load()
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(images))
    held = images.take(order[: config.samples])
    noise = rng.standard_normal((config.samples, *images.shape), np.float32)
    reference = data_moments(network, images, order[config.samples :])

    def moments(x: np.ndarray) -> mc.metrics.Moments:
        return mc.metrics.Moments.of(mc.metrics.features(network, np.clip(x, -1, 1)))

    model, labels = mc.emoji_teacher(), np.asarray(held.label)
    controller = mc.adaptive_steps(1e-5)
    exact = np.asarray(_counted(model, diffrax.Tsit5(), controller, noise, labels).z)
    flow = moments(exact)

    def distances(x: np.ndarray) -> tuple[float, float]:
        own = moments(x)
        return mc.metrics.frechet_distance(own, reference), (
            mc.metrics.frechet_distance(own, flow)
        )

    return Problem(model, noise, labels, held, exact, distances)


def by_ratio(schedule: mc.Cosine, denoise: mc.DenoiseFn, steps: int):
    """`d(z / alpha) / d(sigma / alpha) = eps` by Tsit5 in equal steps of it."""
    low, high = jnp.tan(schedule.angle(0.0)), jnp.tan(schedule.angle(1.0))

    def slope(ratio, u, args):
        t = _time(schedule, jnp.arctan(ratio))
        z = u / jnp.sqrt(1.0 + ratio**2)
        return schedule.eps(z, denoise(z, t), t)

    def flow(z):
        u = _tsit5(slope, z * jnp.sqrt(1.0 + high**2), high, low, steps)
        return u / jnp.sqrt(1.0 + low**2)

    return flow


def by_logsnr(schedule: mc.Cosine, denoise: mc.DenoiseFn, steps: int):
    """`dz / dlogsnr = -alpha sigma v / 2` by Tsit5 in equal steps of logsnr."""

    def slope(logsnr, z, args):
        t = _time(schedule, jnp.arctan(jnp.exp(-0.5 * logsnr)))
        v = schedule.velocity(z, denoise(z, t), t)
        return -0.5 * schedule.alpha(t) * schedule.sigma(t) * v

    def flow(z):
        return _tsit5(slope, z, schedule.logsnr_min, schedule.logsnr_max, steps)

    return flow


def _time(schedule: mc.Cosine, angle):
    start, end = schedule.angle(0.0), schedule.angle(1.0)
    return jnp.clip((angle - start) / (end - start), 0.0, 1.0)


def _tsit5(slope, start, begin, end, steps: int):
    term, times = diffrax.ODETerm(slope), jnp.linspace(begin, end, steps + 1)
    solution: Any = diffrax.diffeqsolve(
        term,
        diffrax.Tsit5(),
        times[0],
        times[-1],
        None,
        start,
        stepsize_controller=diffrax.StepTo(times),
    )
    return solution.ys[-1]


@eqx.filter_jit
def _counted(model, solver, controller, noise, labels):
    def one(z, label):
        return mc.probability_flow(
            lambda z, t: model(z, t, label),
            model.schedule,
            z,
            1.0,
            0.0,
            solver=solver,
            stepsize_controller=controller,
        )

    return jax.vmap(one)(noise, labels)


def runs(problem: Problem) -> Iterator[tuple[str, int | float, Callable[[], Any]]]:
    """Method, a number that names the run, and a call for evaluations and samples."""
    key = jax.random.key(0)
    ts = np.linspace(0.0, 1.0, 33)
    table = mc.measure_x_var(problem.model, problem.data, ts, key=key)
    samplers = {
        "DDIM": (mc.DDIM(), 1),
        "aDDIM, analytic x_var": (mc.ADDIM(), 1),
        "aDDIM, measured x_var": (mc.ADDIM(table), 1),
        "aDDIM, norm-balanced": (mc.ADDIM(table, balanced=True), 1),
        "Heun": (mc.Heun(), 2),
        "DPM-Solver++(2M)": (mc.DPMSolver(), 1),
    }

    def sampled(sampler, grid):
        model, noise, labels = problem.model, problem.noise, problem.labels
        return mc.generate(model, sampler, grid, noise, labels, key=key, batch_size=32)

    def solved(solver, tolerance):
        controller = mc.adaptive_steps(tolerance)
        model, noise, labels = problem.model, problem.noise, problem.labels
        flow = _counted(model, solver, controller, noise, labels)
        return float(np.mean(flow.evaluations)), np.asarray(flow.z)

    for name, (sampler, cost) in samplers.items():
        for n in COUNTS:
            grid = mc.uniform_grid(n // cost)
            yield name, n, lambda s=sampler, g=grid, n=n: (n, sampled(s, g))
    for solver in (diffrax.Dopri5(), diffrax.Tsit5()):
        for n in COUNTS[1:]:
            # Six calls a step, and one before the first.
            steps = (n - 1) // 6
            flow = mc.ProbabilityFlow(solver, mc.fixed_steps(steps))
            count, grid = 6 * steps + 1, mc.uniform_grid(1)
            name = f"{type(solver).__name__}, fixed steps"
            yield name, count, lambda f=flow, g=grid, c=count: (c, sampled(f, g))
    variables = {"sigma/alpha": by_ratio, "logsnr": by_logsnr}
    for name, build in variables.items() if problem.labels is None else ():
        for n in COUNTS[1:]:
            steps = (n - 1) // 6
            flow = jax.jit(jax.vmap(build(mc.Cosine(), problem.model, steps)))
            method, count = f"Tsit5, fixed steps of {name}", 6 * steps + 1
            yield (
                method,
                count,
                lambda f=flow, c=count: (c, np.asarray(f(problem.noise))),
            )
    for solver in (diffrax.Dopri5(), diffrax.Tsit5()):
        for tolerance in TOLERANCES:
            name = f"{type(solver).__name__}, adaptive {tolerance:g}"
            yield name, 0, lambda s=solver, t=tolerance: solved(s, t)


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """One line a method, both axes logarithmic."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=matplotlib.colormaps["tab20"](range(20)))
    lines: dict[str, list[tuple[float, float]]] = {}
    value = "distance_to_flow" if rows[0]["distance_to_flow"] else "rms_error"
    for row in rows:
        name = row["method"].split(" adaptive")[0].rstrip(",")
        name += ", adaptive" if "adaptive" in row["method"] else ""
        point = (float(row["evaluations"]), float(row[value]))
        lines.setdefault(name, []).append(point)
    for name, points in lines.items():
        axes.loglog(*np.array(sorted(points)).T, marker="o", ms=3, label=name)
    axes.set_xlabel("network evaluations a sample")
    axes.set_ylabel(f"{value.replace('_', ' ')} (of the samples to the exact flow's)")
    axes.legend(fontsize=8)
    with whole(path) as part:
        figure.savefig(part, dpi=120)


def main(config: Config) -> Path:
    """Measure what the table lacks, write table and plot, and return the table."""
    table = config.out / f"solver_error_{config.problem}.csv"
    done: list[dict[str, str]] = []
    if table.exists():
        with table.open(newline="") as file:
            done = list(csv.DictReader(file))
    ours = {"samples": str(config.samples), "seed": str(config.seed)}
    other = [row for row in done if any(row[k] != v for k, v in ours.items())]
    if other:
        raise ValueError(
            f"{table} holds samples={other[0]['samples']}, seed={other[0]['seed']}; "
            "give another --out"
        )
    problem = {"mixture": mixture, "teacher": teacher}[config.problem](config)
    known = {(row["method"], row["evaluations"]) for row in done}
    known |= {(row["method"], "0") for row in done if "adaptive" in row["method"]}
    for method, count, run in runs(problem):
        if (method, str(count)) in known:
            continue
        begun = time.perf_counter()
        evaluations, x = run()
        seconds = time.perf_counter() - begun
        error = np.sqrt(np.mean((x - problem.exact) ** 2))
        both = () if problem.distances is None else problem.distances(x)
        numbers = [f"{v:.6g}" for v in (error, *both)] + [""] * (2 - len(both))
        values = (
            method,
            f"{evaluations:g}",
            *numbers,
            *ours.values(),
            f"{seconds:.2f}",
        )
        row = dict(zip(COLUMNS, values, strict=True))
        print(
            f"{method:28} {evaluations:7.1f} evaluations {row['rms_error']}", flush=True
        )
        done.append(row)
        with whole(table) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(done)
    plot(done, table.with_suffix(".png"))
    return table


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
