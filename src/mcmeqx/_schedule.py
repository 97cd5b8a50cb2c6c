"""Variance-preserving noise schedules.

`z_t = alpha_t x + sigma_t eps` with `alpha_t^2 + sigma_t^2 = 1`; t = 0 is data, t = 1
noise. A schedule is known by its log signal-to-noise ratio
`logsnr_t = log(alpha_t^2 / sigma_t^2)`, or by the angle `theta_t` with
`alpha_t = cos theta_t`, `sigma_t = sin theta_t`: `tan theta_t = exp(-logsnr_t / 2)`.

A deterministic step from t to s needs `sin(theta_t - theta_s)`, which float32 loses
when it subtracts two nearby angles. So a schedule also says `sin_gap(t, dt)`, computed
from the length `dt = t - s` of the step without a cancellation. Two facts follow:

    sigma_s / sigma_t                      what a step keeps of z_t
    kappa = sin_gap / sigma_t              what it adds of x

because `alpha_s - alpha_t sigma_s / sigma_t = sin(theta_t - theta_s) / sigma_t`.
"""

import math
from abc import abstractmethod
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp

from mcmeqx._types import Sample, Scalar, ScalarLike


class AbstractNoiseSchedule(eqx.Module):
    """A variance-preserving schedule on t in [0, 1], from data to noise.

    Its numbers are static fields: arrays would be trained, and cannot be compared.
    """

    @abstractmethod
    def logsnr(self, t: ScalarLike) -> Scalar:
        """`log(alpha_t^2 / sigma_t^2)` in nats: finite and decreasing on [0, 1]."""

    @abstractmethod
    def sin_gap(self, t: ScalarLike, dt: ScalarLike) -> Scalar:
        """`sin(theta_t - theta_s)` at `s = t - dt`, exact to rounding for tiny `dt`."""

    def alpha(self, t: ScalarLike) -> Scalar:
        """The factor of the clean sample at time t, in (0, 1)."""
        return jnp.exp(-0.5 * jax.nn.softplus(-self.logsnr(t)))

    def sigma(self, t: ScalarLike) -> Scalar:
        """The factor of the noise at time t, in (0, 1)."""
        return jnp.exp(-0.5 * jax.nn.softplus(self.logsnr(t)))

    def angle_rate(self, t: ScalarLike) -> Scalar:
        """`d theta_t / dt` in radians, positive: the slope of `sin_gap` at `dt = 0`."""
        zero = jnp.zeros_like(jnp.asarray(1.0 * t))
        gap = partial(self.sin_gap, t)
        return jax.jvp(gap, (zero,), (jnp.ones_like(zero),))[1]

    def diffuse(self, x: Sample, eps: Sample, t: ScalarLike) -> Sample:
        """`z_t = alpha_t x + sigma_t eps`, in the shape of `x`."""
        return self.alpha(t) * x + self.sigma(t) * eps

    def eps(self, z: Sample, x: Sample, t: ScalarLike) -> Sample:
        """The noise `(z - alpha_t x) / sigma_t` that `x` leaves in `z`."""
        return (z - self.alpha(t) * x) / self.sigma(t)

    def velocity(self, z: Sample, x: Sample, t: ScalarLike) -> Sample:
        """`v = alpha_t eps - sigma_t x = (alpha_t z - x) / sigma_t`, Salimans & Ho."""
        return (self.alpha(t) * z - x) / self.sigma(t)


class Cosine(AbstractNoiseSchedule):
    """The cosine schedule whose logsnr runs from one bound to the other.

    `theta_t = a t + b`, so `logsnr_t = -2 log tan(a t + b)` (Salimans & Ho 2022). In
    float32 the end at t = 1 is met to 0.001 for -15 and 0.01 for -20; at -30, to 1.
    """

    logsnr_min: float = eqx.field(default=-15.0, static=True)
    """Log signal-to-noise ratio at t = 1, in nats."""
    logsnr_max: float = eqx.field(default=15.0, static=True)
    """Log signal-to-noise ratio at t = 0, in nats."""

    def __check_init__(self):
        if not -30.0 <= self.logsnr_min < self.logsnr_max <= 30.0:
            raise ValueError(
                "Cosine needs -30 <= logsnr_min < logsnr_max <= 30 (float32 cannot "
                f"tell further ends from 0), got {self.logsnr_min}, {self.logsnr_max}"
            )

    def _angle_range(self) -> tuple[float, float]:
        start = math.atan(math.exp(-0.5 * self.logsnr_max))
        return start, math.atan(math.exp(-0.5 * self.logsnr_min)) - start

    def angle(self, t: ScalarLike) -> ScalarLike:
        """`theta_t` in radians, linear in t."""
        start, width = self._angle_range()
        return width * t + start

    def logsnr(self, t: ScalarLike) -> Scalar:
        """`-2 log tan theta_t`."""
        return -2.0 * jnp.log(jnp.tan(self.angle(t)))

    def sin_gap(self, t: ScalarLike, dt: ScalarLike) -> Scalar:
        """`sin(a dt)`: the same at every t."""
        return jnp.sin(self._angle_range()[1] * dt)


class Shifted(AbstractNoiseSchedule):
    """The cosine schedule moved to other noise resolutions (Hoogeboom et al. 2023).

    `logsnr_t = cosine_t + (1 - t) 2 log(low / image) + t 2 log(high / image)`. Equal
    resolutions give the plain shift, different ones the interpolated schedule: `low`
    rules at the data end and `high` at the noise end. Heek et al. use 32 and 64 for
    64-pixel images.
    """

    image_resolution: int = eqx.field(static=True)
    """Side of the image, in pixels."""
    low: int = eqx.field(static=True)
    """Noise resolution at the data end, in pixels."""
    high: int = eqx.field(static=True)
    """Noise resolution at the noise end, in pixels."""
    base: Cosine = Cosine()
    """The schedule that is shifted."""

    def __check_init__(self):
        for name in ("image_resolution", "low", "high"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Shifted.{name} is a number of pixels, at least 1, "
                    f"got {getattr(self, name)}"
                )
        # The cosine logsnr falls by at least 4 a per unit of t, and by just that in the
        # middle.
        if 2.0 * math.log(self.high / self.low) >= 4.0 * self.base._angle_range()[1]:
            raise ValueError(
                f"Shifted(low={self.low}, high={self.high}) makes logsnr rise with t; "
                "bring low and high closer together"
            )

    def _shift(self, t: ScalarLike) -> ScalarLike:
        at_data = 2.0 * math.log(self.low / self.image_resolution)
        return at_data + t * 2.0 * math.log(self.high / self.low)

    def logsnr(self, t: ScalarLike) -> Scalar:
        """The cosine logsnr plus the shift at t."""
        return self.base.logsnr(t) + self._shift(t)

    def sin_gap(self, t: ScalarLike, dt: ScalarLike) -> Scalar:
        """`sin(theta_t - theta_s)` through `tan theta = c tan theta_cosine`.

        With `c_t = exp(-shift_t / 2)` the sine rule gives
        `(c_s sin(a dt) + (c_t - c_s) sin_t cos_s) / (n_t n_s)`, and `c_t - c_s` comes
        from `expm1` of the change of the shift, which is linear in `dt`.
        """
        s = t - dt
        change = dt * 2.0 * math.log(self.high / self.low)
        c_t, c_s = jnp.exp(-0.5 * self._shift(t)), jnp.exp(-0.5 * self._shift(s))
        sin_t, cos_t = jnp.sin(self.base.angle(t)), jnp.cos(self.base.angle(t))
        sin_s, cos_s = jnp.sin(self.base.angle(s)), jnp.cos(self.base.angle(s))
        difference = c_s * jnp.expm1(-0.5 * change)
        numerator = c_s * self.base.sin_gap(t, dt) + difference * sin_t * cos_s
        return numerator / (
            jnp.hypot(cos_t, c_t * sin_t) * jnp.hypot(cos_s, c_s * sin_s)
        )
