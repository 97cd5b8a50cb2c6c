"""Steps from t to an earlier time s, as functions of one example.

With `kappa = alpha_s - alpha_t sigma_s / sigma_t` (Heek et al. 2024, eq. 4, 5, Alg. 3):

    DDIM      z_s = sigma_s / sigma_t z_t + kappa x
    inverse   x   = (z_s - sigma_s / sigma_t z_t) / kappa
    aDDIM     z_s = alpha_s x + sqrt(sigma_s^2 + q kappa^2 x_var) eps,  q = d / |eps|^2

aDDIM lands where a DDIM step lands that is told `x + correction`, so `addim_x` returns
that x and every deterministic step here is `ddim` of some x. The correction is the
difference of two nearly equal numbers, `sqrt(sigma_s^2 + g) - sigma_s`, formed as
`g / (sqrt(sigma_s^2 + g) + sigma_s)`.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._types import Sample, Scalar, ScalarLike

VarianceFn = Callable[[AbstractNoiseSchedule, ScalarLike], Scalar]


def ddim(
    schedule: AbstractNoiseSchedule, z: Sample, x: Sample, t: ScalarLike, s: ScalarLike
) -> Sample:
    """`z_s`: one DDIM step from t to s <= t (Heek et al. 2024, eq. 4).

    `z` and `x` have one shape, that of one example. At s = t it returns `z`.
    """
    sigma_t = schedule.sigma(t)
    return (schedule.sigma(s) / sigma_t) * z + (
        schedule.sin_gap(t, t - s) / sigma_t
    ) * x


def inverse_ddim(
    schedule: AbstractNoiseSchedule,
    z: Sample,
    z_s: Sample,
    t: ScalarLike,
    s: ScalarLike,
) -> Sample:
    """The x with `ddim(schedule, z, x, t, s) = z_s`, for s < t (eq. 5).

    In float32 it loses digits like `1 / kappa` when s is close to t; training does not
    use it (see `mcmeqx.merge_steps`).
    """
    sigma_t = schedule.sigma(t)
    kept = (schedule.sigma(s) / sigma_t) * z
    return (z_s - kept) / (schedule.sin_gap(t, t - s) / sigma_t)


def addim_x(
    schedule: AbstractNoiseSchedule,
    z: Sample,
    x: Sample,
    t: ScalarLike,
    s: ScalarLike,
    *,
    x_var: ScalarLike,
    balanced: bool = False,
) -> Sample:
    """The x for which plain DDIM from t to s lands where aDDIM lands (Alg. 3).

    `x_var` is the variance that the denoiser leaves in each element of x, averaged over
    the d elements of this one example; 0 returns `x`. `balanced` drops the paper's
    assumption that x and eps are orthogonal: with their expected inner product
    `alpha_t / sigma_t d x_var` the norm of `z_s` is right for the optimal denoiser, and
    steps of it alone sample Gaussian data exactly, whatever their number.
    """
    sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
    kappa = schedule.sin_gap(t, t - s) / sigma_t
    eps = schedule.eps(z, x, t)
    q = 1.0 / jnp.maximum(jnp.mean(eps**2), jnp.finfo(eps.dtype).tiny)
    b = (
        schedule.alpha(s) * (schedule.alpha(t) / sigma_t) * x_var * q
        if balanced
        else 0.0
    )
    base = sigma_s + b
    return (
        x + kappa * x_var * q / (base + jnp.sqrt(base**2 + q * kappa**2 * x_var)) * eps
    )


def addim(
    schedule: AbstractNoiseSchedule,
    z: Sample,
    x: Sample,
    t: ScalarLike,
    s: ScalarLike,
    *,
    x_var: ScalarLike,
    balanced: bool = False,
) -> Sample:
    """`z_s`: one aDDIM step, DDIM with the norm that DDIM loses put back (Alg. 3)."""
    shifted = addim_x(schedule, z, x, t, s, x_var=x_var, balanced=balanced)
    return ddim(schedule, z, shifted, t, s)


def before_the_end(x_var: ScalarLike, s: ScalarLike) -> Scalar:
    """`x_var` of a step to `s`; 0 at s = 0, where no later step takes noise away."""
    return jnp.where(jnp.asarray(s) > 0, x_var, 0.0)


def ddpm(
    schedule: AbstractNoiseSchedule,
    z: Sample,
    x: Sample,
    t: ScalarLike,
    s: ScalarLike,
    *,
    key: Key[Array, ""],
) -> Sample:
    """`z_s` drawn from `q(z_s | z_t, x)`: one ancestral step (Ho et al. 2020).

    With `r = sigma_s alpha_t / (sigma_t alpha_s)` the mean is
    `alpha_s (1 - r^2) x + r sigma_s / sigma_t z` and the variance
    `sigma_s^2 (1 - r^2)`.
    """
    sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
    log_r = 0.5 * (schedule.logsnr(t) - schedule.logsnr(s))
    fresh = -jnp.expm1(2.0 * log_r)
    mean = schedule.alpha(s) * fresh * x + jnp.exp(log_r) * (sigma_s / sigma_t) * z
    noise = jax.random.normal(key, jnp.shape(z), jnp.result_type(z))
    return mean + sigma_s * jnp.sqrt(fresh) * noise


def analytic_x_var(schedule: AbstractNoiseSchedule, t: ScalarLike) -> Scalar:
    """`0.1 / (2 + SNR_t)`: a tenth of a Gaussian's posterior variance (Alg. 3)."""
    return 0.1 / (2.0 + jnp.exp(schedule.logsnr(t)))


class MeasuredVariance(eqx.Module):
    """`x_var` read off a table of a denoiser's errors, linear in t between entries."""

    t: Float[Array, " points"]
    """Times of the table, rising."""
    x_var: Float[Array, " points"]
    """`eta mean |x - x_hat(z_t)|^2 / d` at those times; see `measure_x_var`."""

    def __check_init__(self):
        rising = bool(jnp.all(jnp.diff(self.t) > 0))
        if self.t.shape != self.x_var.shape or not rising:
            raise ValueError(
                "MeasuredVariance needs rising times and one x_var for each, got times "
                f"{self.t} and {self.x_var.shape} variances"
            )

    def __call__(self, schedule: AbstractNoiseSchedule, t: ScalarLike) -> Scalar:
        """The tabulated variance at time t."""
        return jnp.interp(jnp.asarray(t), self.t, self.x_var)
