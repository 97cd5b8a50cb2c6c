"""The probability flow (Song et al. 2021), in the angle theta.

With `alpha = cos theta`, `sigma = sin theta` the deterministic path that has the
diffusion's marginals is

    dz/dtheta = v(z, theta),      v = (alpha z - x) / sigma

whose right side is of order one from data to noise, so one step size serves all of
[0, 1]. In `z / alpha` against `sigma / alpha` the noise end is stiff and 1800 long; in
logsnr both ends are long and flat, and a step across them extrapolates too far. Angles
need no special case at t = 0 or t = 1, and float32 agrees with float64 there
(`benchmarks/solver_error.py` compares the three).
"""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from mcmeqx._denoiser import v_prediction
from mcmeqx._ode import (
    ADAPTIVE,
    TSIT5,
    Solver,
    StepSizeController,
    check_solver,
    integrate,
)
from mcmeqx._sampler import AbstractStepSampler
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._types import DenoiseFn, Sample, Scalar, ScalarLike


class Flow(NamedTuple):
    """Where the probability flow leads, and what it cost."""

    z: Sample
    """The sample at time s."""
    evaluations: Int[Array, ""]
    """Calls of the denoiser."""
    change: Sample
    """`z_s - z_t`, exact relative to its own size, as their difference is not."""


def probability_flow(
    denoise: DenoiseFn,
    schedule: AbstractNoiseSchedule,
    z: Sample,
    t: ScalarLike,
    s: ScalarLike,
    *,
    solver: Solver = TSIT5,
    stepsize_controller: StepSizeController = ADAPTIVE,
    throw: bool = True,
) -> Flow:
    """`z` at time t carried to time s along the probability flow: one example.

    s < t decodes noise to data, s > t encodes data to noise. `solver` is any explicit
    method of diffrax for an ODE; its own time runs from 0 at t to 1 at s, which a
    `stepsize_controller` other than `fixed_steps` and `adaptive_steps` must know.

    Raises an error where a solve takes more than 4096 adaptive steps or ever shorter
    ones, which names the time, or ends with a number that is not finite; without
    `throw` a solve that stopped gives NaN, and another what it came to.
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
        throw=throw,
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
    alphas = schedule.alpha(t) * schedule.alpha(s)
    cosine = alphas + schedule.sigma(t) * schedule.sigma(s)
    half_tangent = sine / (1.0 + cosine)
    v = -(half_tangent * z + change / sine)
    return v_prediction(schedule, z, v, t)


class ProbabilityFlow(AbstractStepSampler):
    """Each step of the grid solved by diffrax: `generate` over `[1, 0]` or `[0, 1]`."""

    rising: ClassVar[bool] = True
    """A rising grid encodes data as noise."""
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
