"""Teachers: what carries z from t to the next time s of the teacher's grid.

Consistency distillation (CD) and consistency training (CT) differ here alone. A teacher
answers with the x for which one DDIM step from t to s lands at its own z_s: a form in
which no small difference of large numbers is ever taken.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp

from mcmeqx._denoiser import Model
from mcmeqx._sampler import addim_x
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._types import Example, Sample, ScalarLike


class AbstractTeacher(eqx.Module):
    """One small deterministic step along the teacher's trajectory."""

    @abstractmethod
    def step_x(
        self,
        schedule: AbstractNoiseSchedule,
        example: Example,
        z: Sample,
        t: ScalarLike,
        s: ScalarLike,
    ) -> Sample:
        """The x with which `ddim(schedule, z, x, t, s)` is the teacher's z_s."""


class DataTeacher(AbstractTeacher):
    """The data point itself: consistency training, which needs no teacher model."""

    def step_x(
        self,
        schedule: AbstractNoiseSchedule,
        example: Example,
        z: Sample,
        t: ScalarLike,
        s: ScalarLike,
    ) -> Sample:
        """`example.x`: its z_s is `alpha_s x + sigma_s eps`."""
        return example.x


class DistillationTeacher(AbstractTeacher):
    """A trained denoiser's aDDIM step (Heek et al. 2024, Alg. 1 and 3)."""

    denoiser: Model
    """The teacher model; it sees no dropout and gets no gradient."""
    x_var_fraction: float = eqx.field(default=0.75, static=True)
    """eta: x_var is eta `|x_hat - x|^2 / d` of this example; 0 makes the step DDIM."""
    balanced: bool = eqx.field(default=False, static=True)
    """Use the norm-balanced factor of `addim_x`."""

    def __check_init__(self):
        if not 0.0 <= self.x_var_fraction <= 1.0:
            raise ValueError(
                f"x_var_fraction is a share of the squared error, in [0, 1], "
                f"got {self.x_var_fraction}"
            )

    def step_x(
        self,
        schedule: AbstractNoiseSchedule,
        example: Example,
        z: Sample,
        t: ScalarLike,
        s: ScalarLike,
    ) -> Sample:
        """The teacher's estimate of x with aDDIM's correction.

        Raises ValueError if the student's schedule is not the teacher's own.
        """
        if self.denoiser.schedule != schedule:
            raise ValueError(
                f"the student's schedule is {schedule}, its teacher's is "
                f"{self.denoiser.schedule}: they must be the same"
            )
        x = self.denoiser(z, t, example.label)
        x_var = self.x_var_fraction * jnp.mean((x - example.x) ** 2)
        shifted = addim_x(schedule, z, x, t, s, x_var=x_var, balanced=self.balanced)
        return jax.lax.stop_gradient(shifted)
