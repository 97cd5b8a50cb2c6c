"""Samplers: objects that take z along a grid of times, in one loop each.

The arithmetic of their steps stands in `_step`; a sampler says where it calls the
denoiser and what it makes of the answers.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mcmeqx._checks import check_noise
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._step import (
    VarianceFn,
    addim,
    analytic_x_var,
    before_the_end,
    ddim,
    ddpm,
)
from mcmeqx._types import DenoiseFn, Sample, ScalarLike


class AbstractSampler(eqx.Module):
    """A rule that takes z along a falling grid of times with calls of a denoiser."""

    rising: ClassVar[bool] = False
    """Whether a grid may rise instead, from data to noise."""

    @abstractmethod
    def run(
        self,
        denoise: DenoiseFn,
        schedule: AbstractNoiseSchedule,
        z: Sample,
        ts: Float[Array, " times"],
        *,
        key: Key[Array, ""],
        steps: ScalarLike | None = None,
    ) -> Sample:
        """`z` at `ts[-1]`, from `z` at `ts[0]`, in its shape and dtype.

        With `steps`, which may be traced, at `ts[steps]`: later times are not looked
        at, and one executable serves grids of any length up to that of `ts`.
        """


class AbstractStepSampler(AbstractSampler):
    """A sampler whose steps know nothing of each other."""

    @abstractmethod
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
        """`z_s`, in the shape and dtype of `z`."""

    def run(
        self,
        denoise: DenoiseFn,
        schedule: AbstractNoiseSchedule,
        z: Sample,
        ts: Float[Array, " times"],
        *,
        key: Key[Array, ""],
        steps: ScalarLike | None = None,
    ) -> Sample:
        """`step` from each time to the next.

        Where `steps` is traced, there is no derivative backward.
        """

        def body(i: Any, z: Sample) -> Sample:
            step_key = jax.random.fold_in(key, i)
            return self.step(denoise, schedule, z, ts[i], ts[i + 1], key=step_key)

        return jax.lax.fori_loop(0, len(ts) - 1 if steps is None else steps, body, z)


class DDIM(AbstractStepSampler):
    """Deterministic first-order sampling; the student's only sampler (Alg. 2)."""

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
        """One `ddim` step."""
        return ddim(schedule, z, denoise(z, t), t, s)


class ADDIM(AbstractStepSampler):
    """Adjusted DDIM, the paper's teacher sampler (Alg. 3), ending with a DDIM step."""

    x_var: VarianceFn = analytic_x_var
    """`(schedule, t) -> variance left in x per element`: analytic or measured."""
    balanced: bool = eqx.field(default=False, static=True)
    """Use the norm-balanced factor of `addim_x` in place of the paper's."""
    literal: bool = eqx.field(default=False, static=True)
    """Take the step to t = 0 as printed too, which leaves noise of the variance x_var
    in the sample: right norms, and images that are grainy below some 64 steps."""

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
        """One `addim` step."""
        x_var = self.x_var(schedule, t)
        x_var = x_var if self.literal else before_the_end(x_var, s)
        x = denoise(z, t)
        return addim(schedule, z, x, t, s, x_var=x_var, balanced=self.balanced)


class DDPM(AbstractStepSampler):
    """Ancestral sampling: the posterior of the forward process at the estimated x."""

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
        """One `ddpm` step."""
        return ddpm(schedule, z, denoise(z, t), t, s, key=key)


class Heun(AbstractStepSampler):
    """Second order, two evaluations a step: the trapezoid rule for `dz/dtheta = v`.

    The step to t = 0 is DDIM's alone (Karras et al. 2022, Alg. 1), so `steps` cost
    `2 steps - 1` evaluations: close to the data v vanishes within less than a step, and
    a network cannot tell what noise is left. A mean of x at both ends would be the
    shorter code, but its error falls only like `h^2 log h`: in `alpha / sigma`, DDIM's
    variable, the data end is infinitely far.
    """

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
        """A DDIM step to s, then, unless s is 0, the step with the mean velocity."""
        x_t = denoise(z, t)
        z_s = ddim(schedule, z, x_t, t, s)

        def corrected(z_s: Sample) -> Sample:
            v_t = schedule.velocity(z, x_t, t)
            v_s = schedule.velocity(z_s, denoise(z_s, s), s)
            angle = jnp.arcsin(schedule.sin_gap(t, t - s))
            return z - angle * 0.5 * (v_t + v_s)

        return jax.lax.cond(s > 0, corrected, lambda z_s: z_s, z_s)


def uniform_grid(steps: int) -> np.ndarray:
    """`1, 1 - 1/steps, ..., 0`: the `steps + 1` times of a uniform sampling grid.

    Every k / steps is rounded once. Raises ValueError unless `steps` is a positive
    integer.
    """
    if steps < 1 or steps != int(steps):
        raise ValueError(
            f"steps is the number of sampling steps, 1 or more, got {steps}"
        )
    return np.arange(steps, -1, -1) / steps


def sample(
    denoise: DenoiseFn,
    sampler: AbstractSampler,
    schedule: AbstractNoiseSchedule,
    z: Sample,
    ts: Float[Array, " times"] | np.ndarray,
    *,
    key: Key[Array, ""],
) -> Sample:
    """The sample at `ts[-1]` that `z` at `ts[0]` leads to.

    `ts` falls from its first entry to its last, for instance `uniform_grid(8)`; along
    `ProbabilityFlow` it may also rise, which encodes data as noise. One example;
    `generate` is the batched edge. Raises ValueError for `z` below float32.
    """
    check_noise(z)
    ts = jnp.asarray(ts, jnp.result_type(z))
    return sampler.run(denoise, schedule, z, ts, key=key)
