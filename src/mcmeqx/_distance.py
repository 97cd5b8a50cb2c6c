"""How far an estimate of x is from its target, and what that weighs by noise level."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from mcmeqx._types import Sample, Scalar

Weighting = Callable[[Scalar], Scalar]


def snr_plus_one(logsnr: Scalar) -> Scalar:
    """`SNR + 1 = 1 / sigma^2`, the paper's weight."""
    return jnp.exp(jax.nn.softplus(logsnr))


def sqrt_snr_plus_one(logsnr: Scalar) -> Scalar:
    """`1 / sigma`: with a norm, the distance of v, level over all times."""
    return jnp.exp(0.5 * jax.nn.softplus(logsnr))


class PseudoHuber(eqx.Module):
    """`sqrt(|x|^2 + eps^2) - eps`: a norm with a smooth, quadratic bottom."""

    eps: float = eqx.field(default=1e-4, static=True)
    """Where quadratic turns linear, in units of x."""
    reduction: Literal["rms", "sum", "elementwise"] = eqx.field(
        default="rms", static=True
    )
    """The mean square, the sum of squares, or each element's square, then averaged."""

    def __check_init__(self):
        if not self.eps > 0:
            raise ValueError(
                f"PseudoHuber.eps must be positive, or the gradient at 0 is undefined; "
                f"got {self.eps}"
            )
        if self.reduction not in ("rms", "sum", "elementwise"):
            raise ValueError(
                "PseudoHuber.reduction is rms, sum or elementwise, "
                f"got {self.reduction}"
            )

    def __call__(self, difference: Sample) -> Scalar:
        """The distance, at least 0, of one example's difference."""
        square = difference**2
        if self.reduction == "rms":
            square = jnp.mean(square)
        elif self.reduction == "sum":
            square = jnp.sum(square)
        return jnp.mean(square / (jnp.sqrt(square + self.eps**2) + self.eps))
