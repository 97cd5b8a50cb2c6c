"""Differential equations along the angle theta of a schedule, solved by diffrax.

The solver sees time tau from 0 at t to 1 at s, and `y` as it changes from its start:
where that is 0, a step of length 1/1280 is as exact, relative to itself, as a long one.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._types import Scalar, ScalarLike

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
    throw: bool = True,
) -> tuple[PyTree, Int[Array, ""]]:
    """The y at s of `dy/dtheta = field(time, y)` from `start` at t, and the cost.

    s may lie before or after t. Raises an error when a solve needs more than 4096
    adaptive steps or ever shorter ones, which says where, or ends with a number that is
    not finite; without `throw` y is NaN where it stopped, else what it came to.
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
    if throw:
        end = _checked(end, stuck, t - solution.ts[-1] * length, max_steps)
    else:
        end = jax.tree.map(lambda leaf: jnp.where(stuck, jnp.nan, leaf), end)
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
