"""Steps from t to an earlier time s, and the loop that samples with them.

With `kappa = alpha_s - alpha_t sigma_s / sigma_t` (Heek et al. 2024, eq. 4, 5, Alg. 3):

    DDIM      z_s = sigma_s / sigma_t z_t + kappa x
    inverse   x   = (z_s - sigma_s / sigma_t z_t) / kappa
    aDDIM     z_s = alpha_s x + sqrt(sigma_s^2 + q kappa^2 x_var) eps,  q = d / |eps|^2

aDDIM lands where a DDIM step lands that is told `x + correction`, so `addim_x` returns
that x and every deterministic step here is `ddim` of some x. The correction is the
difference of two nearly equal numbers, `sqrt(sigma_s^2 + g) - sigma_s`, formed as
`g / (sqrt(sigma_s^2 + g) + sigma_s)`.
"""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._types import DenoiseFn, Sample, Scalar, ScalarLike

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
    Gaussian data are sampled exactly at every number of steps.
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


class AbstractSampler(eqx.Module):
    """A rule that takes z along a falling grid of times with calls of a denoiser."""

    @abstractmethod
    def run(
        self,
        denoise: DenoiseFn,
        schedule: AbstractNoiseSchedule,
        z: Sample,
        ts: Float[Array, " times"],
        *,
        key: Key[Array, ""],
    ) -> Sample:
        """`z` at `ts[-1]`, from `z` at `ts[0]`, in its shape and dtype."""


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
    ) -> Sample:
        """`step` from each time to the next: one `lax.scan`."""

        def body(z: Sample, inputs: tuple[Scalar, Scalar, Key[Array, ""]]):
            t, s, step_key = inputs
            return self.step(denoise, schedule, z, t, s, key=step_key), None

        keys = jax.random.split(key, ts.shape[0] - 1)
        return jax.lax.scan(body, z, (ts[:-1], ts[1:], keys))[0]


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
    """Adjusted DDIM, the paper's teacher sampler (Alg. 3)."""

    x_var: VarianceFn = analytic_x_var
    """`(schedule, t) -> variance left in x per element`: analytic or measured."""
    balanced: bool = eqx.field(default=False, static=True)
    """Use the norm-balanced factor of `addim_x` in place of the paper's."""

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

    A mean of x at both ends would be the shorter code, but its error falls only like
    `h^2 log h`: in `alpha / sigma`, DDIM's variable, the data end is infinitely far.
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
        """A DDIM step to s, then the step with the mean of both velocities."""
        x_t = denoise(z, t)
        z_s = ddim(schedule, z, x_t, t, s)
        v_t = schedule.velocity(z, x_t, t)
        v_s = schedule.velocity(z_s, denoise(z_s, s), s)
        angle = jnp.arcsin(schedule.sin_gap(t, t - s))
        return z - angle * 0.5 * (v_t + v_s)


def uniform_grid(steps: int) -> np.ndarray:
    """`1, 1 - 1/steps, ..., 0`: the `steps + 1` times of a uniform sampling grid.

    Every k / steps is rounded once, so a student's grid holds its segment ends bit for
    bit. Raises ValueError unless `steps` is a positive integer.
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
    """The sample at `ts[-1]` that `z` at `ts[0]` leads to; one `lax.scan`.

    `ts` falls from its first entry to its last, for instance `uniform_grid(8)`. One
    example; `generate` is the batched edge.
    """
    ts = jnp.asarray(ts, jnp.result_type(z))
    return sampler.run(denoise, schedule, z, ts, key=key)
