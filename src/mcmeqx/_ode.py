"""The probability-flow ODE by diffrax (Song et al. 2021), in the angle theta.

With `alpha = cos theta`, `sigma = sin theta` the deterministic path that has the
diffusion's marginals is

    dz/dtheta = v(z, theta),      v = (alpha z - x) / sigma

whose right side is of order one from data to noise, so one step size serves all of
[0, 1]. In `z / alpha` against `sigma / alpha` the noise end is stiff and 1800 long; in
logsnr both ends are long and flat, and a step across them extrapolates too far. Angles
need no special case at t = 0 or t = 1, and float32 agrees with float64 there
(`benchmarks/solver_error.py` compares the three).

The solver sees time tau from 0 at t to 1 at s, and `y = z - z_t` from 0: a step of
length 1/1280 is then as exact, relative to itself, as a long one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from mcmeqx._denoiser import v_prediction
from mcmeqx._sampler import AbstractStepSampler
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._types import DenoiseFn, Sample, Scalar, ScalarLike

Solver = diffrax.AbstractSolver
StepSizeController = diffrax.AbstractStepSizeController
TSIT5: Solver = diffrax.Tsit5()
Field = Callable[[Scalar, PyTree], PyTree]

# Of the way from t to s. Starting at y = 0, diffrax would choose one of 1e-4.
_FIRST_STEP = 1 / 32
_MOST_STEPS = 4096
_SHORTEST_STEP = 1e-6


def fixed_steps(steps: int) -> StepSizeController:
    """`steps` equal steps from t to s. ValueError unless that is one or more."""
    if steps < 1:
        raise ValueError(f"steps is the number of solver steps, 1 or more, got {steps}")
    return diffrax.StepTo(ts=jnp.linspace(0.0, 1.0, steps + 1))


def adaptive_steps(tolerance: float = 1e-5) -> StepSizeController:
    """Steps with an error of at most about `tolerance`, absolute and relative.

    A solve that would step by less than a millionth of the way fails.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance is positive, got {tolerance}")
    return diffrax.PIDController(
        rtol=tolerance, atol=tolerance, dtmin=_SHORTEST_STEP, force_dtmin=False
    )


ADAPTIVE = adaptive_steps()


class Flow(NamedTuple):
    """Where the probability flow leads, and what it cost."""

    z: Sample
    """The sample at time s."""
    evaluations: Int[Array, ""]
    """Calls of the denoiser."""
    change: Sample
    """`z_s - z_t`, exact relative to its own size, as their difference is not."""


_CALLS = {
    diffrax.Euler: (1, 0),
    diffrax.LeapfrogMidpoint: (1, 0),
    diffrax.ReversibleHeun: (1, 1),
}


def check_solver(solver: Solver, stepsize_controller: StepSizeController) -> None:
    """ValueError for a solver that cannot be counted, or cannot choose its steps."""
    _calls(solver)
    fixed = isinstance(stepsize_controller, diffrax.StepTo)
    if not fixed and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"{type(solver).__name__} does not estimate its error, so its steps cannot "
            "be adaptive: give fixed_steps(n), or a solver like Heun or Tsit5"
        )


def _calls(solver: Solver) -> tuple[int, int]:
    """Calls of the right side in one step, and once before the first."""
    if type(solver) in _CALLS:
        return _CALLS[type(solver)]
    if not isinstance(solver, diffrax.AbstractERK):
        raise ValueError(
            f"{type(solver).__name__} is not an explicit method: its calls of the "
            "network cannot be counted, and in the angle the flow is not stiff; use "
            "Euler, Heun, Dopri5, Tsit5, ..."
        )
    tableau: Any = solver.tableau
    first = int(tableau.fsal)
    return tableau.num_stages - first, first


def integrate(
    field: Field,
    schedule: AbstractNoiseSchedule,
    start: PyTree,
    t: ScalarLike,
    s: ScalarLike,
    *,
    solver: Solver,
    stepsize_controller: StepSizeController,
) -> tuple[PyTree, Int[Array, ""]]:
    """The y at s of `dy/dtheta = field(time, y)` from `start` at t, and the cost.

    s may lie before or after t. Raises an error when a solve needs more than
    4096 steps, which says where, or meets a number that is not finite.
    """
    check_solver(solver, stepsize_controller)
    stages, first = _calls(solver)
    first_step, max_steps = _FIRST_STEP, _MOST_STEPS
    if isinstance(stepsize_controller, diffrax.StepTo):
        first_step = None
        max_steps = max(max_steps, len(stepsize_controller.ts) - 1)
    dtype = jax.tree.leaves(start)[0].dtype
    t, s = jnp.asarray(t, dtype), jnp.asarray(s, dtype)
    stepsize_controller = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf,
        stepsize_controller,
    )
    length = t - s

    def derivative(tau: Any, y: PyTree, args: None) -> PyTree:
        time = t - tau * length
        rate = -length * schedule.angle_rate(time)
        return jax.tree.map(lambda slope: rate * slope, field(time, y))

    state = None
    if first and isinstance(solver, diffrax.AbstractERK):
        # The last stage of a step is the first of the next. Given the very first, the
        # solver does not compute it anew each time it rejects a first step.
        state = (jnp.asarray(False), derivative(jnp.zeros((), dtype), start, None))
    solution: Any = diffrax.diffeqsolve(
        diffrax.ODETerm(derivative),
        solver,
        t0=jnp.zeros((), dtype),
        t1=jnp.ones((), dtype),
        dt0=first_step,
        y0=start,
        stepsize_controller=stepsize_controller,
        max_steps=max_steps,
        solver_state=state,
        throw=False,
    )
    end = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    stuck = ~(solution.result == diffrax.RESULTS.successful)
    end = _checked(end, stuck, t - solution.ts[-1] * length, max_steps)
    return end, stages * solution.stats["num_steps"] + first


def _checked(end: PyTree, stuck: Array, time: Scalar, max_steps: int) -> PyTree:
    # Under jit a message cannot hold a traced number: one message for each hundredth.
    messages = [
        f"the probability-flow solve stopped at t = {i / 100:.2f}: {max_steps} steps "
        f"were not enough, or one of {_SHORTEST_STEP} of the way was too long. Loosen "
        "the tolerance, and look at what the denoiser returns there."
        for i in range(101)
    ]
    messages += ["the probability-flow solve met a number that is not finite"]
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(end)]
    hundredth = jnp.nan_to_num(jnp.clip(jnp.round(100 * time), 0, 100))
    index = jnp.where(stuck, hundredth.astype(jnp.int32), 101)
    failed = stuck | ~jnp.all(jnp.stack(finite))
    return eqx.branched_error_if(end, failed, jnp.where(failed, index, 0), messages)


def probability_flow(
    denoise: DenoiseFn,
    schedule: AbstractNoiseSchedule,
    z: Sample,
    t: ScalarLike,
    s: ScalarLike,
    *,
    solver: Solver = TSIT5,
    stepsize_controller: StepSizeController = ADAPTIVE,
) -> Flow:
    """`z` at time t carried to time s along the probability flow: one example.

    s < t decodes noise to data, s > t encodes data to noise. `solver` is any explicit
    method of diffrax for an ODE; its own time runs from 0 at t to 1 at s, which a
    `stepsize_controller` other than `fixed_steps` and `adaptive_steps` must know.

    Raises an error where a solve takes more than 4096 steps or ever shorter ones,
    which names the time, or ends with a number that is not finite.
    """

    def field(time: Scalar, y: Sample) -> Sample:
        return schedule.velocity(z + y, denoise(z + y, time), time)

    change, evaluations = integrate(
        field,
        schedule,
        jnp.zeros_like(z),
        t,
        s,
        solver=solver,
        stepsize_controller=stepsize_controller,
    )
    return Flow(z + change, evaluations, change)


def flow_x(
    schedule: AbstractNoiseSchedule,
    z: Sample,
    t: ScalarLike,
    s: ScalarLike,
    *,
    change: Sample,
) -> Sample:
    """The x with which `ddim(schedule, z, x, t, s)` lands on `z + change`, for s < t.

    From `z_s = cos d z_t - sin d v`, `d = theta_t - theta_s`:
    `v = -(tan(d / 2) z_t + change / sin d)`, free of small differences.
    """
    sine = schedule.sin_gap(t, t - s)
    half_tangent = sine / (1.0 + jnp.sqrt(jnp.maximum(1.0 - sine**2, 0.0)))
    v = -(half_tangent * z + change / sine)
    return v_prediction(schedule, z, v, t)


class ProbabilityFlow(AbstractStepSampler):
    """Each step of the grid solved by diffrax: `generate` over `[1, 0]` or `[0, 1]`."""

    solver: Solver = TSIT5
    """An explicit method."""
    stepsize_controller: StepSizeController = ADAPTIVE
    """`adaptive_steps(tolerance)` or `fixed_steps(n)` within each step of the grid."""

    def __check_init__(self):
        check_solver(self.solver, self.stepsize_controller)

    def step(
        self,
        denoise: DenoiseFn,
        schedule: AbstractNoiseSchedule,
        z: Sample,
        t: ScalarLike,
        s: ScalarLike,
        *,
        key: Key[Array, ""],
    ) -> Sample:
        """`z` at s by `probability_flow`."""
        return probability_flow(
            denoise,
            schedule,
            z,
            t,
            s,
            solver=self.solver,
            stepsize_controller=self.stepsize_controller,
        ).z
