"""DPM-Solver++(2M): second order at one network evaluation a step (Lu et al. 2022).

With `l = logsnr / 2` a step of length `h = l_s - l_t` is the DDIM step that is told x
extrapolated to its middle from this and the previous evaluation:

    x_middle = x_t + h / (2 h_before) (x_t - x_before)

The first step, which has nothing before it, and the last, whose h is many times the one
before it, are plain DDIM: the authors' `lower_order_final`, for any number of steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mcmeqx._sampler import AbstractSampler
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._step import ddim
from mcmeqx._types import DenoiseFn, Sample, Scalar, ScalarLike


class DPMSolver(AbstractSampler):
    """DPM-Solver++(2M), deterministic: the strong baseline of few evaluations."""

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
        """`z` at `ts[-1]`, or at `ts[steps]`."""
        steps = len(ts) - 1 if steps is None else steps

        def body(i: Any, carry: tuple[Sample, Sample, Scalar]):
            z, x_before, h_before = carry
            t, s = ts[i], ts[i + 1]
            x = denoise(z, t)
            h = 0.5 * (schedule.logsnr(s) - schedule.logsnr(t))
            half = jnp.where(i + 1 < steps, 0.5, 0.0).astype(ts.dtype)
            middle = x + (half * h / h_before) * (x - x_before)
            return ddim(schedule, z, middle, t, s), x, h

        start = (z, jnp.zeros_like(z), jnp.asarray(jnp.inf, ts.dtype))
        return jax.lax.fori_loop(0, steps, body, start)[0]
