"""Exact answers on Gaussian data, from closed forms in NumPy and float64.

For `x ~ N(0, diag(var))` write `q_t^2 = alpha_t^2 var + sigma_t^2`. The best denoiser
is `alpha_t var / q_t^2 z`, the probability flow carries z_t to `q_s / q_t z_t`, and the
exact multistep student predicts the v whose one DDIM step ends where the flow ends.
Mixtures of Gaussians have an exact denoiser too; their flow is left to SciPy.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mcmeqx import Cosine, Denoiser, Shifted
from mcmeqx.nets import AbstractNetwork

SCHEDULES = (
    Cosine(),
    Cosine(-20.0, 20.0),
    Shifted(64, 32, 64),
    Shifted(64, 32, 32),
    Shifted(512, 32, 512),
)


def cosine_line(schedule: Cosine) -> tuple[float, float]:
    """Start and slope of the cosine schedule's angle."""
    start = math.atan(math.exp(-schedule.logsnr_max / 2))
    return start, math.atan(math.exp(-schedule.logsnr_min / 2)) - start


def theta(schedule, t):
    """The angle with `alpha = cos`, `sigma = sin`, in float64."""
    t = np.asarray(t, np.float64)
    if isinstance(schedule, Cosine):
        start, slope = cosine_line(schedule)
        return start + slope * t
    angle = theta(schedule.base, t)
    low, high, side = schedule.low, schedule.high, schedule.image_resolution
    stretch = (side / low) ** (1 - t) * (side / high) ** t
    return np.arctan2(stretch * np.sin(angle), np.cos(angle))


def time_of(logsnr, schedule: Cosine):
    """t of a float32 logsnr of a cosine schedule, in float64, traceable."""
    start, slope = cosine_line(schedule)
    return (jnp.arctan(jnp.exp(-0.5 * logsnr.astype(jnp.float64))) - start) / slope


def alpha_sigma(schedule, t):
    """`alpha_t` and `sigma_t` in float64."""
    angle = theta(schedule, t)
    return np.cos(angle), np.sin(angle)


def scale(schedule, var, t):
    """`q_t`, the standard deviation of z_t where x has the variance `var`."""
    alpha, sigma = alpha_sigma(schedule, t)
    return np.sqrt(alpha**2 * var + sigma**2)


def gaussian_denoiser(schedule, var):
    """`(z, t) -> E[x | z_t]`, traceable, in the dtype of z."""

    def denoise(z, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha * var / (alpha**2 * var + sigma**2) * z

    return denoise


def gaussian_x_var(var):
    """`(schedule, t) -> ` mean posterior variance of x given z_t."""

    def x_var(schedule, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return jnp.mean(var * sigma**2 / (alpha**2 * var + sigma**2))

    return x_var


class GaussianModel(eqx.Module):
    """The optimal denoiser of N(label, var) as a model; a key changes nothing."""

    schedule: Cosine
    var: float

    def __call__(self, z, t, label=None, *, guidance=None, key=None):
        mean = jnp.asarray(0 if label is None else label, z.dtype)
        denoise = gaussian_denoiser(self.schedule, self.var)
        return mean + denoise(z - self.schedule.alpha(t) * mean, t)


class GaussianNetwork(AbstractNetwork):
    """The optimal v for data of the variance `var`; it refuses dropout."""

    var: float

    def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
        assert key is None
        angle = jnp.arctan(jnp.exp(-0.5 * logsnr.astype(jnp.float64)))
        alpha, sigma = jnp.cos(angle), jnp.sin(angle)
        gain = alpha * sigma * (1 - self.var) / (alpha**2 * self.var + sigma**2)
        return gain.astype(z.dtype) * z


class StudentNetwork(AbstractNetwork):
    """The exact v of a student of `steps` segments of a cosine schedule.

    `v = (cos(theta_t - theta_r) - q_r / q_t) / sin(theta_t - theta_r) z`, which for
    unit variance is `-tan((theta_t - theta_r) / 2) z`. A border belongs to the segment
    below.
    """

    var: float
    steps: int
    schedule: Cosine

    def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
        start, slope = cosine_line(self.schedule)
        t = time_of(logsnr, self.schedule)
        angle = start + slope * t
        r = jnp.maximum(jnp.ceil(self.steps * t - 2e-4) - 1, 0) / self.steps
        angle_r = start + slope * r
        gap = jnp.maximum(angle - angle_r, 1e-9)
        if self.var == 1.0:
            gain = -jnp.tan(gap / 2)
        else:
            q_t = jnp.sqrt(jnp.cos(angle) ** 2 * self.var + jnp.sin(angle) ** 2)
            q_r = jnp.sqrt(jnp.cos(angle_r) ** 2 * self.var + jnp.sin(angle_r) ** 2)
            gain = (jnp.cos(gap) - q_r / q_t) / jnp.sin(gap)
        return gain.astype(z.dtype) * z


def gaussian_teacher(schedule, var) -> Denoiser:
    """The optimal denoiser as a model."""
    return Denoiser(GaussianNetwork(var), schedule)


def gaussian_student(schedule, var, steps) -> Denoiser:
    """The exact student as a model."""
    return Denoiser(StudentNetwork(var, steps, schedule), schedule)


def image_spectrum(side: int) -> np.ndarray:
    """Eigenvalues of Gaussian images whose power falls as 1 / f^2, of mean 0.25."""
    f = np.fft.fftfreq(side) * side
    square = f[:, None] ** 2 + f[None, :] ** 2
    var = (1.0 / np.maximum(square, 1.0)).ravel()
    return 0.25 * var / var.mean()


def mean_field(schedule, var, steps, *, x_var, balanced=False):
    """Second moments, per direction, of samples by the paper's aDDIM (or DDIM).

    The literal Algorithm 3 with the exact denoiser, `|eps|^2` at its expected value.
    `x_var` is a function of SNR_t. `balanced` solves for the norm with x and eps not at
    right angles, but of the product that the best estimate has with its noise.
    """
    moment = np.ones_like(var)
    for n in range(steps, 0, -1):
        alpha_t, sigma_t = alpha_sigma(schedule, n / steps)
        alpha_s, sigma_s = alpha_sigma(schedule, (n - 1) / steps)
        x = alpha_t * var / (alpha_t**2 * var + sigma_t**2)
        eps = (1 - alpha_t * x) / sigma_t
        z_var = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2
        left, q = x_var((alpha_t / sigma_t) ** 2), 1 / np.mean(eps**2 * moment)
        b = alpha_s * alpha_t / sigma_t * left * q if balanced else 0.0
        factor = np.sqrt((sigma_s + b) ** 2 + q * z_var * left) - b
        moment = (alpha_s * x + factor * eps) ** 2 * moment
    return moment


def trace_and_w2(moment, var):
    """Relative error of the trace and relative squared W2 distance to the data."""
    trace = moment.mean() / var.mean() - 1
    return trace, np.mean((np.sqrt(moment) - np.sqrt(var)) ** 2) / var.mean()


def mixture_denoiser(schedule, means, std):
    """`(z, t) -> E[x | z_t]` for an equal mixture of round Gaussians, traceable."""

    def denoise(z, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        u = alpha**2 * std**2 + sigma**2
        residuals = z - alpha * jnp.asarray(means)
        r = jax.nn.softmax(-jnp.sum(residuals**2, 1) / (2 * u))
        return r @ (jnp.asarray(means) + alpha * std**2 / u * residuals)

    return denoise


@dataclass(frozen=True)
class MixtureFlow:
    """`dz/dt` of the probability flow of a mixture, from its score, in NumPy.

    With `f = d log alpha / dt` and `g^2 = d sigma^2 / dt - 2 f sigma^2` it is
    `f z - g^2 / 2 score` (Song et al. 2021), here for alpha = cos, sigma = sin of an
    angle that is linear in t: `f = -theta' tan theta`, `g^2 = 2 theta' tan theta`.
    """

    schedule: Cosine
    means: np.ndarray
    std: float

    def _components(self, z, t):
        """z from each noisy mean, their common variance, `log p_t` of each at z."""
        alpha, sigma = alpha_sigma(self.schedule, t)
        u = alpha**2 * self.std**2 + sigma**2
        residuals = z - alpha * self.means
        size = self.means.shape[1]
        square = np.sum(residuals**2, 1)
        return residuals, u, -square / (2 * u) - 0.5 * size * np.log(2 * np.pi * u)

    def log_density(self, z, t):
        """`log p_t(z)` of the noisy mixture, in float64."""
        log_each = self._components(z, t)[-1]
        return np.logaddexp.reduce(log_each) - np.log(len(self.means))

    def __call__(self, t, z):
        alpha, sigma = alpha_sigma(self.schedule, t)
        residuals, u, log_each = self._components(z, t)
        r = np.exp(log_each - np.logaddexp.reduce(log_each))
        score = -(r @ residuals) / u
        return -cosine_line(self.schedule)[1] * (sigma / alpha) * (z + score)
