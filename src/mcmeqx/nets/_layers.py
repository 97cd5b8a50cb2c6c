"""The layers of the UViT: channels last, one example, float32 parameters.

Blocks follow simple diffusion (Hoogeboom et al. 2023, app. B): every residual branch
ends in a layer that starts at zero, so that a fresh network passes its input through.
The noise level and class enter by FiLM, `h (1 + scale) + shift` (Perez et al. 2018).

Products of matrices and convolutions run in the precision of their input. What adds or
scales by a vector runs in float32, norms with their statistics too: the gradient of a
vector is a sum over all pixels and examples, which bfloat16 cannot hold.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mcmeqx._sharding import keep_row
from mcmeqx.nets._attention import attend

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

    def __call__(self, x: Map) -> Map:
        """The normalised map: float32 statistics folded into one multiply-add."""
        x_wide = wide(x)
        mean = jnp.mean(x_wide, (0, 1)).reshape(self.groups, -1).mean(1)
        square = jnp.mean(x_wide**2, (0, 1)).reshape(self.groups, -1).mean(1)
        rsqrt = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0.0) + 1e-5)
        repeats = x.shape[-1] // self.groups
        factor = jnp.repeat(rsqrt, repeats) * wide(self.scale)
        offset = wide(self.bias) - jnp.repeat(mean, repeats) * factor
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


class ResNetBlock(eqx.Module):
    """x plus norm, swish, convolution, norm, FiLM, swish, dropout, zero convolution.

    x itself goes through a linear map where the block changes the channels.
    """

    norm_in: GroupNorm
    conv_in: Conv
    norm_out: GroupNorm
    film: Dense
    dropout: eqx.nn.Dropout
    conv_out: Conv
    project: Dense | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        embedding: int,
        dropout: float,
        *,
        group_width: int = 1,
        key: Key[Array, ""],
    ):
        in_key, film_key, out_key = jax.random.split(key, 3)
        self.norm_in = GroupNorm(n_in, group_width)
        self.conv_in = Conv(n_in, n_out, key=in_key)
        self.norm_out = GroupNorm(n_out, group_width)
        self.film = Dense(embedding, 2 * n_out, gain=0.1, key=film_key)
        self.dropout = eqx.nn.Dropout(dropout)
        self.conv_out = Conv(n_out, n_out, gain=0.0, key=out_key)
        self.project = None
        if n_in != n_out:
            self.project = Dense(n_in, n_out, key=jax.random.fold_in(key, 3))

    def __call__(
        self,
        x: Map,
        emb: Vector,
        key: Key[Array, ""] | None,
        resample: Callable[[Map], NewMap] = lambda x: x,
    ) -> NewMap:
        """The map after the block, with `n_out` channels.

        `resample` may change its resolution, of x too, before the first convolution.
        """
        h = self.conv_in(resample(jax.nn.silu(self.norm_in(x))))
        h = jax.nn.silu(film(self.norm_out(h), self.film(emb)))
        h = self.dropout(h, key=key, inference=key is None)
        x = resample(x)
        x = x if self.project is None else self.project(x)
        return x + self.conv_out(h)


class TransformerBlock(eqx.Module):
    """A FiLM-conditioned MLP, then self-attention with normalised queries and keys."""

    norm_mlp: RMSNorm
    mlp_in: Dense
    film: Dense
    dropout: eqx.nn.Dropout
    mlp_out: Dense
    norm_attention: RMSNorm
    qkv: Dense
    norm_q: RMSNorm
    norm_k: RMSNorm
    out: Dense
    heads: int = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        embedding: int,
        dropout: float,
        head_width: int,
        *,
        key: Key[Array, ""],
    ):
        keys = jax.random.split(key, 5)
        self.norm_mlp = RMSNorm(width)
        self.mlp_in = Dense(width, 4 * width, key=keys[0])
        self.film = Dense(embedding, 8 * width, gain=0.1, key=keys[1])
        self.dropout = eqx.nn.Dropout(dropout)
        self.mlp_out = Dense(4 * width, width, gain=0.0, key=keys[2])
        self.norm_attention = RMSNorm(width)
        self.qkv = Dense(width, 3 * width, key=keys[3])
        self.norm_q = RMSNorm(head_width)
        self.norm_k = RMSNorm(head_width)
        self.out = Dense(width, width, gain=0.0, key=keys[4])
        self.heads = width // head_width

    def __call__(self, x: Tokens, emb: Vector, key: Key[Array, ""] | None) -> Tokens:
        """The tokens after the block, in the shape of `x`."""
        h = film(jax.nn.silu(self.mlp_in(self.norm_mlp(x))), self.film(emb))
        x = x + self.mlp_out(self.dropout(h, key=key, inference=key is None))
        q, k, v = jnp.split(self.qkv(self.norm_attention(x)), 3, axis=-1)
        q, k, v = (a.reshape(len(a), self.heads, -1) for a in (q, k, v))
        attended = attend(self.norm_q(q), self.norm_k(k), v)
        return x + self.out(attended.reshape(x.shape))


class Fusion(eqx.Module):
    """`(norm(h) + norm(skip)) / sqrt 2`: how the way up takes in the way down."""

    norm_h: RMSNorm
    norm_skip: RMSNorm

    def __init__(self, width: int):
        self.norm_h, self.norm_skip = RMSNorm(width), RMSNorm(width)

    def __call__(self, h: Array, skip: Array) -> Array:
        """The fused map or tokens, in the shape of both."""
        return (self.norm_h(h) + self.norm_skip(skip)) * math.sqrt(0.5)


def fold(x: Map, side: int) -> NewMap:
    """Blocks of `side` x `side` pixels made channels of one pixel."""
    height, width, channel = x.shape
    x = x.reshape(height // side, side, width // side, side, channel)
    return x.transpose(0, 2, 1, 3, 4).reshape(height // side, width // side, -1)


def unfold(x: Map, side: int) -> NewMap:
    """The inverse of `fold`."""
    height, width, channel = x.shape
    x = x.reshape(height, width, side, side, channel // side**2).transpose(
        0, 2, 1, 3, 4
    )
    return x.reshape(height * side, width * side, -1)


def pool(x: Map) -> NewMap:
    """The mean of each 2x2 block."""
    height, width, channel = x.shape
    return x.reshape(height // 2, 2, width // 2, 2, channel).mean((1, 3))


def upsample(x: Map) -> NewMap:
    """Each pixel made a 2x2 block of itself."""
    return jnp.repeat(jnp.repeat(x, 2, 0), 2, 1)
