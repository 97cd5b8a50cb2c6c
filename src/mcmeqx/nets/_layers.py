"""The layers of the networks: channels last, one example, float32 parameters.

Products of matrices and convolutions run in the precision of their input. What adds or
scales by a vector runs in float32, norms with their statistics too: the gradient of a
vector is a sum over all pixels and examples, which bfloat16 cannot hold.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mcmeqx._sharding import keep_row

Map = Float[Array, "height width channel"]
NewMap = Float[Array, "new_height new_width new_channel"]
Tokens = Float[Array, "token channel"]
Vector = Float[Array, " embedding"]


def wide(x: Array) -> Array:
    """`x` in float32 or wider."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


class Dense(eqx.Module):
    """A linear map of the last axis, with a bias."""

    weight: Float[Array, "in out"]
    bias: Float[Array, " out"]

    def __init__(
        self, n_in: int, n_out: int, *, gain: float = 1.0, key: Key[Array, ""]
    ):
        scale = gain / math.sqrt(n_in)
        self.weight = scale * jax.random.normal(key, (n_in, n_out), jnp.float32)
        self.bias = jnp.zeros(n_out, jnp.float32)

    def __call__(self, x: Float[Array, "*rest in"]) -> Float[Array, "*rest out"]:
        """`x @ weight + bias`."""
        return (wide(keep_row(x @ self.weight)) + wide(self.bias)).astype(x.dtype)


class Conv(eqx.Module):
    """A 3x3 convolution with zero padding that keeps height and width."""

    weight: Float[Array, "3 3 in out"]
    bias: Float[Array, " out"]

    def __init__(
        self, n_in: int, n_out: int, *, gain: float = 1.0, key: Key[Array, ""]
    ):
        scale = gain / math.sqrt(9 * n_in)
        self.weight = scale * jax.random.normal(key, (3, 3, n_in, n_out), jnp.float32)
        self.bias = jnp.zeros(n_out, jnp.float32)

    def __call__(self, x: Map) -> Float[Array, "height width out"]:
        """The convolved map with `out` channels."""
        out = jax.lax.conv_general_dilated(
            x[None],
            self.weight,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return (wide(keep_row(out[0])) + wide(self.bias)).astype(x.dtype)


def film(x: Array, scale_shift: Float[Array, " twice"]) -> Array:
    """`x (1 + scale) + shift` with the two halves of `scale_shift`, per channel."""
    scale, shift = jnp.split(wide(scale_shift), 2)
    return (wide(x) * (1 + scale) + shift).astype(x.dtype)


class GroupNorm(eqx.Module):
    """Group normalisation of a map, over 32 groups or as many as its width allows.

    A group of a single channel loses that channel's mean, which a narrow network has no
    other way to tell: `group_width` is the fewest channels a group may have.
    """

    scale: Float[Array, " channel"]
    bias: Float[Array, " channel"]
    groups: int = eqx.field(static=True)

    def __init__(self, width: int, group_width: int = 1):
        self.scale = jnp.ones(width, jnp.float32)
        self.bias = jnp.zeros(width, jnp.float32)
        self.groups = math.gcd(width, 32)
        while self.groups > 1 and width // self.groups < group_width:
            self.groups //= 2

    def __call__(
        self, x: Map, scale_shift: Float[Array, " twice"] | None = None
    ) -> Map:
        """The normalised map, after FiLM where `scale_shift` is given.

        Float32 statistics and all scales and shifts are folded into one multiply-add.
        The variance is the mean square less the squared mean, in one pass: where the
        mean is thousands of deviations away from 0 it keeps no digit.
        """
        x_wide = wide(x)
        mean = jnp.mean(x_wide, (0, 1)).reshape(self.groups, -1).mean(1)
        square = jnp.mean(x_wide**2, (0, 1)).reshape(self.groups, -1).mean(1)
        rsqrt = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0.0) + 1e-5)
        repeats = x.shape[-1] // self.groups
        factor = jnp.repeat(rsqrt, repeats) * wide(self.scale)
        offset = wide(self.bias) - jnp.repeat(mean, repeats) * factor
        if scale_shift is not None:
            scale, shift = jnp.split(wide(scale_shift), 2)
            factor, offset = factor * (1 + scale), offset * (1 + scale) + shift
            # XLA else computes both again for every pixel: on a CPU, in loops that it
            # does not vectorise.
            factor, offset = jax.lax.optimization_barrier(jnp.stack([factor, offset]))
        return (x_wide * factor + offset).astype(x.dtype)


class RMSNorm(eqx.Module):
    """Root-mean-square norm of the last axis, with a scale (Zhang & Sennrich 2019)."""

    scale: Float[Array, " channel"]

    def __init__(self, width: int):
        self.scale = jnp.ones(width, jnp.float32)

    def __call__(
        self, x: Float[Array, "*rest channel"]
    ) -> Float[Array, "*rest channel"]:
        """The input over its root mean square."""
        x_wide = wide(x)
        rsqrt = jax.lax.rsqrt(jnp.mean(x_wide**2, -1, keepdims=True) + 1e-6)
        return (x_wide * rsqrt * wide(self.scale)).astype(x.dtype)
