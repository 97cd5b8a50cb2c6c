"""DPM-Solver++(2M): second order at one network evaluation a step (Lu et al. 2022).

With `l = logsnr / 2` a step of length `h = l_s - l_t` is the DDIM step that is told x
extrapolated to its middle from this and the previous evaluation:

    x_middle = x_t + h / (2 h_before) (x_t - x_before)

The first step, which has nothing before it, and the last, whose h is many times the one
before it, are plain DDIM: the authors' `lower_order_final`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mcmeqx._sampler import AbstractSampler
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._step import ddim
from mcmeqx._types import DenoiseFn, Sample, Scalar


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
    ) -> Sample:
        """`z` at `ts[-1]`: one `lax.scan`."""

        def body(
            carry: tuple[Sample, Sample, Scalar], inputs: tuple[Scalar, Scalar, Scalar]
        ):
            z, x_before, h_before = carry
            t, s, half = inputs
            x = denoise(z, t)
            h = 0.5 * (schedule.logsnr(s) - schedule.logsnr(t))
            middle = x + (half * h / h_before) * (x - x_before)
            return (ddim(schedule, z, middle, t, s), x, h), None

        halves = jnp.full(ts[1:].shape, 0.5, ts.dtype).at[-1].set(0.0)
        start = (z, jnp.zeros_like(z), jnp.asarray(jnp.inf, ts.dtype))
        return jax.lax.scan(body, start, (ts[:-1], ts[1:], halves))[0][0]

    def padded(self, ts: Float[np.ndarray, " times"]) -> Float[np.ndarray, " padded"]:
        """`ts` itself: each step knows the one before."""
        return ts
