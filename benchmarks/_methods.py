"""Every way of sampling that is measured, and what a sample costs by it."""

from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from _problems import Problem, counted_flow

import mcmeqx as mc

COUNTS = (4, 8, 16, 32, 64, 128, 256, 512)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


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
        "aDDIM, last step as printed": (mc.ADDIM(literal=True), 1),
        "Heun": (mc.Heun(), 2),
        "DPM-Solver++(2M)": (mc.DPMSolver(), 1),
    }

    def sampled(sampler, grid):
        model, noise, labels = problem.model, problem.noise, problem.labels
        return mc.generate(model, sampler, grid, noise, labels, key=key, batch_size=32)

    def solved(solver, tolerance):
        controller = mc.adaptive_steps(tolerance)
        model, noise, labels = problem.model, problem.noise, problem.labels
        flow = counted_flow(model, solver, controller, noise, labels)
        return float(np.mean(flow.evaluations)), np.asarray(flow.z)

    for name, (sampler, cost) in samplers.items():
        for n in COUNTS:
            # Heun's last step costs one.
            count, grid = n + 1 - cost, mc.uniform_grid(n // cost)
            yield name, count, lambda s=sampler, g=grid, c=count: (c, sampled(s, g))
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
