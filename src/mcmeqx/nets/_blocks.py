"""The residual blocks of the UViT and the U-Net, and how skips enter on the way up.

Blocks follow simple diffusion (Hoogeboom et al. 2023, app. B): every residual branch
ends in a layer that starts at zero, so that a fresh network passes its input through.
The noise level and class enter by FiLM, `h (1 + scale) + shift` (Perez et al. 2018).
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mcmeqx.nets._attention import attend
from mcmeqx.nets._dropout import dropout
from mcmeqx.nets._layers import (
    Conv,
    Dense,
    GroupNorm,
    Map,
    NewMap,
    RMSNorm,
    Tokens,
    Vector,
    film,
)


class ResNetBlock(eqx.Module):
    """x plus norm, swish, convolution, norm, FiLM, swish, dropout, zero convolution.

    x itself goes through a linear map where the block changes the channels.
    """

    norm_in: GroupNorm
    conv_in: Conv
    norm_out: GroupNorm
    film: Dense
    conv_out: Conv
    project: Dense | None
    dropout: float = eqx.field(static=True)

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
        self.dropout = dropout
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
        h = jax.nn.silu(self.norm_out(h, self.film(emb)))
        h = dropout(h, self.dropout, key)
        x = resample(x)
        x = x if self.project is None else self.project(x)
        return x + self.conv_out(h)


class TransformerBlock(eqx.Module):
    """A FiLM-conditioned MLP, then self-attention with normalised queries and keys."""

    norm_mlp: RMSNorm
    mlp_in: Dense
    film: Dense
    mlp_out: Dense
    norm_attention: RMSNorm
    qkv: Dense
    norm_q: RMSNorm
    norm_k: RMSNorm
    out: Dense
    heads: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

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
        self.dropout = dropout
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
        x = x + self.mlp_out(dropout(h, self.dropout, key))
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
