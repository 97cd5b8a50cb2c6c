"""The exact log-likelihood of a denoiser's probability flow (Song et al. 2021, app. D).

Along `dz/dtheta = v` a density changes by `d log p / dtheta = -div v`, so with the flow
from the data z_0 to the noise z_1, which is standard normal,

    log p(z_0) = log N(z_1; 0, I) + integral of div v dtheta

The trace is exact, from d forward derivatives, or estimated without bias from random
signs e by `e . (dv/dz) e` (Hutchinson 1989; Grathwohl et al. 2019).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mcmeqx._ode import ADAPTIVE, TSIT5, Solver, StepSizeController, integrate
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._types import DenoiseFn, Sample, Scalar
from mcmeqx.nets._attention import formula_alone


class Likelihood(NamedTuple):
    """The log-density of one example under the model, in nats."""

    nats: Scalar
    """`log p(x)`, x as a continuous variable."""
    standard_error: Scalar
    """Of the trace estimate; 0 for the exact trace, NaN for a single probe."""
    evaluations: Int[Array, ""]
    """Calls of the denoiser, each with its forward derivatives."""


def log_likelihood(
    denoise: DenoiseFn,
    schedule: AbstractNoiseSchedule,
    x: Sample,
    *,
    probes: int | None = None,
    solver: Solver = TSIT5,
    stepsize_controller: StepSizeController = ADAPTIVE,
    key: Key[Array, ""] | None = None,
) -> Likelihood:
    """`log p(x)` of one example by the instantaneous change of variables.

    The density is the model's at t = 0, where alpha x has next to no noise. `probes`
    random sign vectors estimate the trace at a cost of so many forward derivatives, and
    need a `key`; None takes the exact trace, d of them at once, which is for small d.
    The solver and its errors are those of `probability_flow`. Raises ValueError for
    probes below one and for probes without a key.
    """
    d = x.size
    if probes is None:
        directions = jnp.eye(d, dtype=x.dtype)
    elif probes < 1 or key is None:
        raise ValueError(
            "log_likelihood estimates the trace from probes >= 1 and a key, got "
            f"probes={probes} and {'no key' if key is None else 'a key'}"
        )
    else:
        # Folded in: from the same key `dequantise` draws noise of these very signs.
        own = jax.random.fold_in(key, 1)
        directions = jax.random.rademacher(own, (probes, d), x.dtype)
    directions = directions.reshape(-1, *x.shape)
    z = schedule.alpha(0.0).astype(x.dtype) * x

    def field(time: Scalar, state: tuple[Sample, Float[Array, " probes"]]):
        def velocity(y: Sample) -> Sample:
            return schedule.velocity(z + y, denoise(z + y, time), time)

        def along(direction: Sample) -> tuple[Sample, Scalar]:
            with formula_alone():
                v, slope = jax.jvp(velocity, (state[0],), (direction,))
            return v, jnp.vdot(direction, slope)

        vs, slopes = jax.vmap(along, out_axes=(None, 0))(directions)
        return vs, slopes

    start = (jnp.zeros_like(x), jnp.zeros(len(directions), x.dtype))
    (change, integrals), evaluations = integrate(
        field,
        schedule,
        start,
        0.0,
        1.0,
        solver=solver,
        stepsize_controller=stepsize_controller,
    )
    prior = -0.5 * (jnp.sum((z + change) ** 2) + d * math.log(2.0 * math.pi))
    scaled = prior + d * jnp.log(schedule.alpha(0.0)).astype(x.dtype)
    if probes is None:
        error = jnp.zeros((), x.dtype)
        return Likelihood(scaled + jnp.sum(integrals), error, evaluations)
    error = jnp.std(integrals, ddof=1) / math.sqrt(probes)
    return Likelihood(scaled + jnp.mean(integrals), error, evaluations)


_BIN = 2.0 / 255
"""The width of one of 256 values in [-1, 1]."""


def dequantise(x: Sample, *, key: Key[Array, ""]) -> Sample:
    """Pixels in [-1, 1] of 256 values, spread evenly over the bins between them.

    `x + u` with u uniform over a bin, 2 / 255 wide (Theis et al. 2016).
    """
    return x + jax.random.uniform(key, x.shape, x.dtype, -0.5 * _BIN, 0.5 * _BIN)


def bits_per_dim(nats: Scalar, d: int) -> Scalar:
    """Bits per dimension of pixels in [-1, 1] of 256 values, from `log p(x + u)`.

    `-(nats / d + log(2 / 255)) / log 2`: with `dequantise`d x, on average an
    upper bound on the bits of the discrete pixels.
    """
    return -(nats / d + math.log(_BIN)) / math.log(2.0)
