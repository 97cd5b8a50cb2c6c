"""What a loss is, and that of diffusion, for one example.

With `w = SNR + 1 = 1 / sigma^2` the squared distance of x is that of v, because
`x_hat - x = -sigma (v_hat - v)`.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mcmeqx._denoiser import Model
from mcmeqx._distance import Weighting, snr_plus_one
from mcmeqx._guidance import with_null
from mcmeqx._types import Example, Scalar, ScalarLike


class Ratio(NamedTuple):
    """A metric that is averaged apart above and below: a mean over some examples."""

    above: Array
    """What is averaged, 0 for the examples that it leaves out."""
    below: Array
    """1 for the examples that it counts, 0 for others."""

    def over(self) -> Array:
        """The ratio, NaN where nothing was counted."""
        some = self.below > 0
        return jnp.where(some, self.above / jnp.where(some, self.below, 1.0), jnp.nan)


class AbstractLoss(eqx.Module):
    """The loss of one example, a scalar, with metrics to log."""

    @abstractmethod
    def __call__(
        self,
        model: Model,
        example: Example,
        *,
        step: ScalarLike,
        key: Key[Array, ""],
    ) -> tuple[Scalar, dict[str, Any]]:
        """Loss and metrics at training step `step`; `key` is this example's own.

        Metrics are scalars, which are averaged over the batch, or `Ratio`s.
        """


class DiffusionLoss(AbstractLoss):
    """`w_t mean (x - x_hat)^2` at a uniform time: the v-loss by default."""

    weighting: Weighting = eqx.field(default=snr_plus_one, static=True)
    """Weight as a function of logsnr."""
    label_dropout: float = eqx.field(default=0.0, static=True)
    """Share of examples that train the null class, for classifier-free guidance."""

    def __check_init__(self):
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ValueError(
                f"label_dropout is a share of examples, in [0, 1], "
                f"got {self.label_dropout}"
            )

    def __call__(
        self,
        model: Model,
        example: Example,
        *,
        step: ScalarLike,
        key: Key[Array, ""],
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """The loss at one uniform time in [0, 1]."""
        time_key, noise_key, dropout_key, label_key = jax.random.split(key, 4)
        x, label, schedule = example.x, example.label, model.schedule
        t = jax.random.uniform(time_key, (), jnp.float32)
        z = schedule.diffuse(x, jax.random.normal(noise_key, x.shape, x.dtype), t)
        if self.label_dropout:
            drop = jax.random.bernoulli(label_key, self.label_dropout)
            labels = with_null(model, z, t, label)
            label = labels[drop.astype(jnp.int32)]
        square = jnp.mean((x - model(z, t, label, key=dropout_key)) ** 2)
        loss = self.weighting(jnp.asarray(schedule.logsnr(t))) * square
        return loss, {"loss": loss, "x_mse": square}
