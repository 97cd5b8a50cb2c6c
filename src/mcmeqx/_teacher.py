"""Teachers: what carries z from t to the next time s of the teacher's grid.

Consistency distillation (CD) and consistency training (CT) differ here alone. A teacher
answers with the x for which one DDIM step from t to s lands at its own z_s: a form in
which no small difference of large numbers is ever taken.
"""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from mcmeqx._denoiser import Model
from mcmeqx._guidance import Guidance, Guided, calls_each, guided_pair
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._step import addim_x, before_the_end
from mcmeqx._types import Example, Sample, ScalarLike


class TeacherStep(NamedTuple):
    """One step of a teacher and what it cost."""

    x: Sample
    """The x with which `ddim(schedule, z, x, t, s)` is the teacher's z_s."""
    evaluations: ScalarLike
    """Calls of the teacher's network."""


class AbstractTeacher(eqx.Module):
    """One small deterministic step along the teacher's trajectory."""

    @abstractmethod
    def step(
        self,
        schedule: AbstractNoiseSchedule,
        example: Example,
        z: Sample,
        t: ScalarLike,
        s: ScalarLike,
    ) -> TeacherStep:
        """From `z` at t to s < t."""


class DataTeacher(AbstractTeacher):
    """The data point itself: consistency training, which needs no teacher model."""

    guidance: ClassVar[None] = None
    """Data cannot be guided."""

    def step(
        self,
        schedule: AbstractNoiseSchedule,
        example: Example,
        z: Sample,
        t: ScalarLike,
        s: ScalarLike,
    ) -> TeacherStep:
        """`example.x`: its z_s is `alpha_s x + sigma_s eps`."""
        return TeacherStep(example.x, 0)


def check_schedule(
    teacher: AbstractNoiseSchedule, student: AbstractNoiseSchedule
) -> None:
    if teacher != student:
        raise ValueError(
            f"the student's schedule is {student}, its teacher's is {teacher}: they "
            "must be the same"
        )


def check_unguided(denoiser: Model) -> None:
    if isinstance(denoiser, Guided):
        raise ValueError(
            "a teacher's denoiser is Guided: give the model itself and guidance=, so "
            "that x_var and the number of evaluations are the right ones"
        )


class DistillationTeacher(AbstractTeacher):
    """A trained denoiser's aDDIM step (Heek et al. 2024, Alg. 1 and 3).

    To s = 0 it is DDIM: a student would learn what noise aDDIM leaves there, which is
    next to none after hundreds of teacher steps and much after few.
    """

    denoiser: Model
    """The teacher model; it sees no dropout and gets no gradient."""
    x_var_fraction: float = eqx.field(default=0.75, static=True)
    """eta: x_var is eta `|x_hat - x|^2 / d` of this example; 0 makes the step DDIM."""
    balanced: bool = eqx.field(default=False, static=True)
    """Use the norm-balanced factor of `addim_x`."""
    guidance: Guidance | None = None
    """How the teacher is guided; x_var is the unguided prediction's (app. A.1)."""

    def __check_init__(self):
        check_unguided(self.denoiser)
        if not 0.0 <= self.x_var_fraction <= 1.0:
            raise ValueError(
                f"x_var_fraction is a share of the squared error, in [0, 1], "
                f"got {self.x_var_fraction}"
            )

    def step(
        self,
        schedule: AbstractNoiseSchedule,
        example: Example,
        z: Sample,
        t: ScalarLike,
        s: ScalarLike,
    ) -> TeacherStep:
        """The teacher's estimate of x with aDDIM's correction.

        Raises ValueError if the student's schedule is not the teacher's own.
        """
        check_schedule(self.denoiser.schedule, schedule)
        x, unguided = guided_pair(
            self.denoiser, self.guidance, z, t, example.label, example.guidance
        )
        x_var = self.x_var_fraction * jnp.mean((unguided - example.x) ** 2)
        x_var = before_the_end(x_var, s)
        shifted = addim_x(schedule, z, x, t, s, x_var=x_var, balanced=self.balanced)
        return TeacherStep(jax.lax.stop_gradient(shifted), calls_each(self.guidance))
