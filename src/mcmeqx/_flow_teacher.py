"""Teachers that follow the probability flow closer than one estimate of x leads.

A step of the second order makes up for its second call of the denoiser where a teacher
has few steps; any explicit method of diffrax can teach too.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from mcmeqx._denoiser import Model, v_prediction
from mcmeqx._flow import flow_x, probability_flow
from mcmeqx._guidance import Guidance, calls_each, guided_pair
from mcmeqx._ode import Solver, StepSizeController, check_solver, fixed_steps
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._step import ddim
from mcmeqx._teacher import (
    AbstractTeacher,
    TeacherStep,
    check_schedule,
    check_unguided,
)
from mcmeqx._types import DenoiseFn, Example, Sample, ScalarLike


def _guided(denoiser: Model, guidance: Guidance | None, example: Example) -> DenoiseFn:
    """`(z, t) -> x` of the example's class and guidance scale."""

    def denoise(z: Sample, t: ScalarLike) -> Sample:
        label, scale = example.label, example.guidance
        return guided_pair(denoiser, guidance, z, t, label, scale)[0]

    return denoise


class MidpointTeacher(AbstractTeacher):
    """A trained denoiser's step of the second order, for teachers of few steps.

    The midpoint rule for `dz/dtheta = v` in two calls of the denoiser, along a circle
    as DDIM goes: through `z` at t, with the network's velocity at the middle time. To
    s = 0 it is DDIM, as `Heun`.
    """

    denoiser: Model
    """The teacher model; it sees no dropout and gets no gradient."""
    guidance: Guidance | None = None
    """How the teacher is guided."""

    def __check_init__(self):
        check_unguided(self.denoiser)

    def step(
        self,
        schedule: AbstractNoiseSchedule,
        example: Example,
        z: Sample,
        t: ScalarLike,
        s: ScalarLike,
    ) -> TeacherStep:
        """The x of the velocity at t that becomes the network's one in the middle.

        With `a = theta_t - theta_m`, `v_m = cos a v + sin a z`. Raises ValueError if
        the student's schedule is not the teacher's own.
        """
        check_schedule(self.denoiser.schedule, schedule)
        denoise = _guided(self.denoiser, self.guidance, example)
        x, m = denoise(z, t), 0.5 * (t + s)
        z_m = ddim(schedule, z, x, t, m)
        v_m = schedule.velocity(z_m, denoise(z_m, m), m)
        sine = schedule.sin_gap(t, 0.5 * (t - s))
        v = (v_m - sine * z) / jnp.sqrt(1.0 - sine**2)
        x = jnp.where(s > 0, v_prediction(schedule, z, v, t), x)
        calls = 2 * calls_each(self.guidance)
        return TeacherStep(jax.lax.stop_gradient(x), calls)


class ODETeacher(AbstractTeacher):
    """A trained denoiser's probability flow from t to s, solved by diffrax."""

    denoiser: Model
    """The teacher model; it sees no dropout and gets no gradient."""
    solver: Solver
    """An explicit method of diffrax: Euler, Heun, Dopri5, ..."""
    stepsize_controller: StepSizeController = eqx.field(
        default_factory=lambda: fixed_steps(1)
    )
    """`fixed_steps(n)` or `adaptive_steps(tolerance)` between t and s."""
    guidance: Guidance | None = None
    """How the teacher is guided."""

    def __check_init__(self):
        check_unguided(self.denoiser)
        check_solver(self.solver, self.stepsize_controller)

    def step(
        self,
        schedule: AbstractNoiseSchedule,
        example: Example,
        z: Sample,
        t: ScalarLike,
        s: ScalarLike,
    ) -> TeacherStep:
        """Where the flow leads; `evaluations` is the example's own number of calls.

        A solve that fails gives NaN, of which training takes no step. Raises ValueError
        if the student's schedule is not the teacher's own.
        """
        check_schedule(self.denoiser.schedule, schedule)
        denoise = _guided(self.denoiser, self.guidance, example)
        flow = probability_flow(
            denoise,
            schedule,
            z,
            t,
            s,
            solver=self.solver,
            stepsize_controller=self.stepsize_controller,
            throw=False,
        )
        x = flow_x(schedule, z, t, s, change=flow.change)
        calls = flow.evaluations * calls_each(self.guidance)
        return TeacherStep(jax.lax.stop_gradient(x), calls)
