"""Gaussian mixtures: draws from them, and the denoiser that is exact for them.

With means m_k, equal weights and standard deviation c, `z_t = alpha x + sigma eps` is a
mixture too, of means `alpha m_k` and variance `u = alpha^2 c^2 + sigma^2`. Hence

    r_k     = softmax_k(-|z - alpha m_k|^2 / (2 u))
    E[x|z]  = sum_k r_k (m_k + alpha c^2 / u (z - alpha m_k))
"""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mcmeqx import (
    AbstractNoiseSchedule,
    Denoiser,
    Example,
    Label,
    Sample,
    Scalar,
    ScalarLike,
    x_prediction,
)
from mcmeqx.nets import AbstractNetwork


class Mixture(AbstractNetwork):
    """An equal mixture of round Gaussians; as a network it predicts E[x|z]."""

    means: Float[Array, "components size"]
    """Centres of the components."""
    std: float = eqx.field(static=True)
    """Standard deviation of every component in every direction."""

    def __call__(
        self,
        z: Sample,
        logsnr: Scalar,
        label: Label = None,
        *,
        guidance: ScalarLike | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Sample:
        """`E[x|z]` for one z of shape (size,)."""
        alpha_square = jax.nn.sigmoid(logsnr.astype(z.dtype))
        alpha = jnp.sqrt(alpha_square)
        u = alpha_square * self.std**2 + jax.nn.sigmoid(-logsnr.astype(z.dtype))
        residuals = z - alpha * self.means
        r = jax.nn.softmax(-jnp.sum(residuals**2, 1) / (2 * u))
        return r @ (self.means + alpha * self.std**2 / u * residuals)

    def draw(self, n: int, rng: np.random.Generator) -> Float[np.ndarray, "n size"]:
        """`n` independent points, float32."""
        means = np.asarray(self.means)[rng.integers(len(self.means), size=n)]
        noise = rng.standard_normal(means.shape)
        return (means + self.std * noise).astype(np.float32)

    def batches(self, batch_size: int, seed: int) -> Iterator[Example]:
        """Endless batches of fresh points."""
        rng = np.random.default_rng(seed)
        while True:
            yield Example(jnp.asarray(self.draw(batch_size, rng)))


def exact_denoiser(mixture: Mixture, schedule: AbstractNoiseSchedule) -> Denoiser:
    """The denoiser `(z_t, t) -> E[x|z_t]`, with nothing to train."""
    return Denoiser(mixture, schedule, x_prediction)


def pair(std: float) -> Mixture:
    """Two components in one dimension, at -1 and 1."""
    return Mixture(jnp.asarray([[-1.0], [1.0]], jnp.float32), std)


def ring(std: float) -> Mixture:
    """Eight components at equal angles on the unit circle."""
    angles = 2 * np.pi * np.arange(8) / 8
    means = np.stack([np.cos(angles), np.sin(angles)], 1)
    return Mixture(jnp.asarray(means, jnp.float32), std)
